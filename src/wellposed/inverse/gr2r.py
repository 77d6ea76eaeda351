"""Recorrupted-to-recorrupted: denoise without clean images, for Gaussian, Poisson, Gamma and other known noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.modes import evaluating
from ..core.task import Batch
from ..tasks.classify import logits_of
from ..tasks.regress import Regress

__all__ = ["GR2R", "recorrupt"]

Family = Literal["gaussian", "poisson", "gamma"]
Draw = Callable[[Tensor, torch.Generator | None], Tensor]
"""``draw(like, generator)``: noise of unit level, of the shape, dtype and device of ``like``."""
Noise = Family | Draw


def recorrupt(
    y: Tensor,
    noise: Noise,
    level: float | Tensor,
    alpha: float = 0.15,
    generator: torch.Generator | None = None,
    *,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Split a noisy measurement of x into a noisier input y1 and a target y2 with E[y2 | y1] = x.

    Whichever the noise, alpha y2 + (1 - alpha) y1 = y, and for the three families Var y1 = Var y / (1 - alpha) and
    Var y2 = Var y / alpha.

    Args:
        y: measurements of mean x, any shape; real.
        noise: its law: ``"gaussian"``; ``"poisson"``: level times Poisson(x / level); ``"gamma"``:
            Gamma(level, level / x); or, of additive noise, a function that draws it (at unit level). With
            alpha = 1/2 and a copy of the noise the split is exact for every additive law; with another alpha as far as
            moments go: the drawn noise needs mean 0, the noise's variance, and as its third moment that of the noise
            times sqrt((1 - alpha) / alpha).
        level: standard deviation of additive noise, the gain of Poisson's, the number of looks (shape) of Gamma's;
            above 0, a number or what broadcasts to y's shape.
        alpha: share of the information that goes to the target, between 0 and 1.
        generator: of the draw, on y's device.
        check: whether to look if y can be what it is said to be (a GPU is then waited for).

    Returns:
        y1 and y2, of y's shape and dtype, without a graph.

    Raises:
        ValueError: for an unknown noise, a number out of range, or measurements that cannot be of this law.
        TypeError: if y holds integers, or complex numbers.
    """
    if not (callable(noise) or noise in get_args(Family)):
        raise ValueError(f"recorrupt: noise must be {', '.join(get_args(Family))} or a function, got {noise!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"recorrupt: alpha must lie between 0 and 1, got {alpha:g}")
    if not torch.is_floating_point(y):
        raise TypeError(f"recorrupt needs real measurements, but these are {y.dtype}")
    y = y.detach()
    sizes = level.shape if isinstance(level, Tensor) else ()
    if len(sizes) > y.ndim or any(n not in (1, m) for n, m in zip(sizes[::-1], y.shape[::-1], strict=False)):
        raise ValueError(f"recorrupt: a level of shape {tuple(sizes)} does not fit measurements {tuple(y.shape)}")
    if check:
        _check(y, noise, level)
    if callable(noise) or noise == "gaussian":
        drawn = noise(y, generator) if callable(noise) else _normal(y, generator)
        drawn, tau = level * drawn, math.sqrt(alpha / (1 - alpha))
        return (y + tau * drawn).to(y.dtype), (y - drawn / tau).to(y.dtype)
    exact = y.to(torch.float32 if y.device.type == "mps" else torch.float64)
    if noise == "poisson":  # in whole counts: what rounding would leave of y in y2 is enough to learn from
        counts = (exact / level).round()
        counts = counts.where((counts >= 0) & counts.isfinite(), torch.nan)  # else drawing may never end
        taken = torch.binomial(counts.nan_to_num(), torch.full_like(counts, alpha), generator=generator)
        taken = taken.where(counts.isfinite(), torch.nan)
        return (level * (counts - taken) / (1 - alpha)).to(y.dtype), (level * taken / alpha).to(y.dtype)
    share = _beta(torch.as_tensor(level, dtype=exact.dtype, device=y.device).expand_as(exact), alpha, generator)
    return (exact * (1 - share) / (1 - alpha)).to(y.dtype), (exact * share / alpha).to(y.dtype)


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _beta(looks: Tensor, alpha: float, generator: torch.Generator | None) -> Tensor:
    """Beta(looks alpha, looks (1 - alpha))."""
    a = torch._standard_gamma(looks * alpha, generator=generator)
    b = torch._standard_gamma(looks * (1 - alpha), generator=generator)
    return a / (a + b)


def _check(y: Tensor, noise: Noise, level: float | Tensor) -> None:
    if not bool(y.isfinite().all()):
        raise ValueError("recorrupt: measurements must be finite, some of these are not")
    if not bool((torch.as_tensor(level) > 0).all()):
        raise ValueError(f"recorrupt: the level must be above 0, got {level}")
    if noise in ("poisson", "gamma") and bool((y < 0).any()):
        raise ValueError(f"recorrupt: measurements with {noise} noise are not negative, these go down to {y.min():g}")
    if noise == "poisson":
        counts = y.double() / level if y.device.type != "mps" else y / level
        off = (counts - counts.round()).abs()
        if bool((off > 0.01 + 4 * torch.finfo(y.dtype).eps * counts).any()):
            raise ValueError(
                "recorrupt: measurements with Poisson noise are whole multiples of the gain (level), these are not "
                f"(off by up to {float(off.max()):.2g} counts); give the raw counts times the gain"
            )


class GR2R(Method, paper="gr2r"):
    r"""Generalized recorrupted-to-recorrupted: train a denoiser on noisy images alone, for known noise of any family.

    Computes:
        At every step each noisy image x of the batch is split anew into a noisier input y1 and a target y2, whose mean
        given y1 is the clean image; the task then fits y2 from y1. In expectation this is training on clean images.

    Formula:
        \mathbb{E} \lVert f(y_1) - y_2 \rVert^2 = \mathbb{E} \lVert f(y_1) - x \rVert^2 + \text{const}
        \alpha\, y_2 + (1 - \alpha)\, y_1 = y
        y_1 = y + \sigma \sqrt{\frac{\alpha}{1 - \alpha}}\, w, \quad w \sim \mathcal{N}(0, I) \quad (\text{Gaussian})
        y_1 = \frac{y - g w}{1 - \alpha}, \quad w \sim \mathrm{Binomial}(y / g, \alpha) \quad (\text{Poisson})
        y_1 = \frac{y (1 - w)}{1 - \alpha}, \quad w \sim \mathrm{Beta}(l \alpha, l (1 - \alpha)) \quad (\text{Gamma})

    Helps:
        No clean images to train on, and noise whose law and level are known: sensors, low light, speckle.

    Avoid:
        The wrong family: on photo patches, splitting by a Gaussian of the same mean variance gave 10 decibels less for
        speckle, which was worse than doing nothing, and 6 to 7 less for photon noise. An unknown level. Losses that do
        not ask for the mean: ``Regress`` with absolute or Huber error is refused. Feeding the network y itself at test
        time: ``restore`` gives it what it was trained on. Expecting what clean targets give from few images:
        the target's variance is that of y over alpha, and a small training set overfits it (1 to 2 decibels on patches
        of photos; on 1200 digits 83 to 87 % of the supervised gain).

    Defaults:
        alpha 0.15, as in the paper; 5 to 15 draws at test time.

    Cost:
        One pass.

    Reference:
        Monroy, Bacca, Tachella 2024, Generalized Recorrupted-to-Recorrupted: Self-Supervised Learning Beyond Gaussian
        Noise, arXiv 2412.04648. The target is y / alpha - (1 - alpha) y1 / alpha, computed without that difference.
        The paper's likelihood losses are not built in: squared error is unbiased for every family.

    Args:
        noise: ``"gaussian"``, ``"poisson"``, ``"gamma"``, or a function that draws additive noise; see ``recorrupt``.
        level: standard deviation, gain or number of looks; or the key of the batch that holds each sample's (B,), or
            each pixel's.
        alpha: share of the information that goes to the target.

    Example:
        >>> import torch
        >>> from wellposed import Recipe, Regress
        >>> model = torch.nn.Linear(16, 16)
        >>> denoiser = GR2R(noise="poisson", level=0.1)
        >>> recipe = Recipe(denoiser).attach(model, Regress())
        >>> noisy = 0.1 * torch.poisson(torch.full((8, 16), 5.0))
        >>> sorted(recipe.step({"x": noisy}, torch.optim.SGD(model.parameters(), lr=0.1)))
        ['task', 'total']
        >>> denoiser.restore(model, noisy, draws=5).shape
        torch.Size([8, 16])
    """

    reads = ("x",)
    writes = ("y",)
    targets = frozenset({"real"})
    null = None
    exact = False  # every microbatch has a draw of its own
    example = {"model": "restorer", "level": 0.5}

    noise: Noise = "gaussian"
    level: float | str = knob(above=0.0)
    alpha: float = knob(0.15, above=0.0, high=1.0, grid=(0.05, 0.15, 0.5))

    def check(self) -> None:
        if isinstance(self.level, (bool, Tensor)):
            raise ValueError("GR2R: level must be a number, or the key under which levels come in the batch")
        if not (callable(self.noise) or self.noise in get_args(Family)):
            raise ValueError(f"GR2R: noise must be {', '.join(get_args(Family))} or a function, got {self.noise!r}")
        if self.alpha == 1:
            raise ValueError("GR2R: alpha must be below 1, or nothing is left for the input")

    def setup(self, model: nn.Module, task: Task) -> None:
        if isinstance(task, Regress) and task.error != "squared":
            raise RecipeError(
                f"GR2R: only the mean of the targets is the clean image, and {task!r} learns something else; "
                'take Regress("squared")'
            )

    def batch(self, batch: Batch, step: Step) -> Batch:
        x = batch["x"]
        level = self._level(x, batch)
        generator = step.rng(self, device=x.device)
        y1, y2 = recorrupt(x, self.noise, level, self.alpha, generator, check=step.count == 0)
        return {**batch, "x": y1, "y": y2}

    def _level(self, x: Tensor, batch: Batch) -> float | Tensor:
        if not isinstance(self.level, str):
            return self.level
        if self.level not in batch:
            raise ValueError(f"GR2R: the batch has no '{self.level}', the noise level; it has {sorted(batch)}")
        return _of_samples(batch[self.level], x)

    @torch.no_grad()
    def restore(
        self,
        model: nn.Module,
        y: Tensor,
        *,
        draws: int = 15,
        level: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimate of x: the mean of what the trained model, in evaluation mode, makes of several recorruptions of y.

        Args:
            model: as trained with this method.
            y: noisy images (B, ...).
            draws: at least 1; five gained 0.25 decibels on one.
            level: of their noise, a number, one for each sample (B,), or for each pixel; needed where the method's is a
                key of the batch.
            generator: of the draws, on y's device.

        Raises:
            ValueError: without a level, or without draws; and see ``recorrupt``.
        """
        if level is None:
            if isinstance(self.level, str):
                raise ValueError("GR2R.restore: give level=, here it comes with each batch")
            level = self.level
        if draws < 1:
            raise ValueError(f"GR2R.restore: draws must be at least 1, got {draws}")
        if isinstance(level, Tensor):
            level = _of_samples(level, y)
        total = torch.zeros_like(y, dtype=torch.promote_types(y.dtype, torch.float32))
        with evaluating(model):
            for draw in range(draws):
                y1, _ = recorrupt(y, self.noise, level, self.alpha, generator, check=draw == 0)
                total += logits_of(model(y1))
        return (total / draws).to(y.dtype)


def _of_samples(level: Tensor, y: Tensor) -> Tensor:
    """A level for each sample (B,) in a shape that broadcasts against y (B, ...); others as they are."""
    if level.ndim == 1:
        return level.view(-1, *[1] * (y.ndim - 1))
    if level.ndim not in (0, y.ndim):
        raise ValueError(
            f"GR2R: levels are a number, one for each sample, or have as many dimensions as the images "
            f"{tuple(y.shape)}; got shape {tuple(level.shape)}"
        )
    return level
