"""Weights whose length does not matter: what L2 does to them, and how to do without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ._matrices import places
from .lawn import rescale

__all__ = ["UnitWeights", "effective_rates", "equilibrium_norm", "scale_invariant"]

Kind = Literal["sgd", "adam"]


@torch.no_grad()
def scale_invariant(
    outputs: Callable[[], Tensor], params: Mapping[str, Tensor], factor: float = 2.0, tolerance: float = 1e-2
) -> tuple[str, ...]:
    """Names of the tensors that may be multiplied by ``factor`` without a change of the outputs.

    Args:
        outputs: computes them, with the statistics of the batch and without randomness of its own.
        params: candidates, by name.
        factor: of the trial.
        tolerance: largest relative change of the outputs, in Euclidean norm; that normalisation layers add an eps to
            the variance makes it larger than 0.

    Returns:
        in order; a tensor of zeros is not among them. Costs one pass a tensor, and leaves everything as it was.
    """
    before = outputs()
    found = []
    for name, p in params.items():
        kept = p.detach().clone()
        p.mul_(factor)
        change = torch.linalg.vector_norm(outputs() - before)
        p.copy_(kept)
        if change <= tolerance * torch.linalg.vector_norm(before) and kept.any():
            found.append(name)
    return tuple(found)


def effective_rates(
    params: Mapping[str, Tensor], lr: float, decay: float = 0.0, kind: Kind = "sgd"
) -> dict[str, Tensor]:
    """The rate at which the directions of scale-invariant weights move.

    Args:
        params: by name.
        lr: the optimizer's.
        decay: its L2 or weight decay.
        kind: "sgd", or "adam" for optimizers whose moves do not depend on the gradient's size.

    Returns:
        lr / ((1 - lr decay) ||w||^2) by name, the rate at which SGD on unit vectors takes the same steps; for "adam"
        with ||w||, to first order. Van Laarhoven 2017 (arXiv 1706.05350), without the factor 1 - lr decay there.

    Raises:
        ValueError: for another kind.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"effective_rates knows the kinds 'sgd' and 'adam', got {kind!r}")
    power = 2 if kind == "sgd" else 1
    norms = {n: torch.linalg.vector_norm(p.detach()) for n, p in params.items()}
    return {n: lr / ((1 - lr * decay) * norm**power) for n, norm in norms.items()}


def equilibrium_norm(lr: float, decay: float, square: float) -> float:
    """The length at which SGD with L2 holds a scale-invariant weight.

    Args:
        lr: learning rate.
        decay: factor of L2, above 0: the gradient is g + decay w.
        square: mean squared norm of the gradient at the unit vector, E||g(w / ||w||)||^2.

    Returns:
        (lr square / (2 decay))^(1/4), where shrinking by decay and growing by orthogonal steps cancel. The effective
        rate there is sqrt(2 lr decay / square). Reached after some 5 / (2 lr decay) steps.
    """
    if min(lr, decay) <= 0 or square < 0:
        raise ValueError(f"equilibrium_norm needs lr and decay above 0, got {lr:g} and {decay:g}")
    return math.sqrt(math.sqrt(lr * square / (2 * decay)))


class UnitWeights(Method, paper="l2-vs-normalization"):
    r"""Unit weights: what normalisation makes free of scale gets length 1 after each step, in place of an L2 penalty.

    Computes:
        w / ||w|| for every weight tensor that the outputs do not depend on the length of, in the first update and after
        each. Those are found by trial in the first update: each is doubled, and the outputs compared. The function
        stays as it was; the learning rate of these weights becomes the effective one, which L2 would have set by their
        length.

    Formula:
        w \leftarrow \ell \frac{w}{\|w\|}
        \eta_{\mathrm{eff}} = \frac{\eta}{(1 - \eta\lambda) \|w\|^2}, \qquad \|w\|^4 \to \frac{\eta \, \mathbb{E}\|\hat{g}\|^2}{2 \lambda}

    Helps:
        Nets with BatchNorm: L2 on such weights regularises nothing, it is a learning-rate schedule, which can then be
        chosen openly. Replayed with that schedule and no L2, training is the same to rounding.

    Avoid:
        Beside weight decay on the same weights, which then does nothing at all, and an old learning rate: the effective
        one changes by the square of the length (SGD) or by the length (Adam). The eps of BatchNorm breaks the invariance
        where variances are as small as it.

    Defaults:
        length 1.

    Cost:
        One pass and a rescaling of the weights; in the first update one more forward pass a weight tensor.

    Reference:
        Van Laarhoven 2017, L2 Regularization versus Batch and Weight Normalization, arXiv 1706.05350. The effective rate
        that replays L2 exactly has the factor 1 / (1 - lr lambda), which is not in the paper.

    Args:
        length: Euclidean norm of each such weight tensor.
    """  # noqa: E501

    null = None
    exact = False  # where it acts there is a normalisation that couples the samples of a microbatch
    example = {"model": "normed"}

    length: float = knob(1.0, above=0.0, grid=(0.3, 1.0, 3.0))

    def setup(self, model: nn.Module, task: Task) -> None:
        self.edits = tuple(f"{p.layer}.{p.name}".lstrip(".") for p in places(self, model))
        device = next(model.parameters()).device
        self.register_buffer("free", torch.full((len(self.edits),), -1, dtype=torch.int8, device=device))
        self.found: tuple[str, ...] | None = None

    @torch.no_grad()
    def update(self, step: Step) -> None:
        if self.found is None:
            self.found = self._recall() or self._look(step)
        weights = [p for n, p in step.params().items() if n in self.found]
        for w in weights:
            wide = torch.promote_types(w.dtype, torch.float32)
            w.copy_(rescale(w, torch.tensor(self.length, dtype=wide, device=w.device)))

    def _recall(self) -> tuple[str, ...]:
        """What was found before training was resumed; empty for a start."""
        return tuple(n for n, free in zip(self.edits, self.get_buffer("free").tolist(), strict=True) if free > 0)

    def _look(self, step: Step) -> tuple[str, ...]:
        def outputs() -> Tensor:
            out = step.forward()
            return torch.cat(
                [v.float().flatten() for v in out.values() if isinstance(v, Tensor) and v.is_floating_point()]
            )

        params = step.params()
        g = torch.Generator().manual_seed(0)
        # Gains and matrices that start at 0 would hide everything behind them.
        odd = {n: torch.rand(p.shape, generator=g).to(p) + 0.5 for n, p in params.items() if p.ndim < 2 or not p.any()}
        candidates = {n: step.model.get_parameter(n) for n in self.edits if n not in odd}  # frozen since, some perhaps
        with step.moved(odd):
            found = scale_invariant(outputs, candidates)
        if not found:
            raise RecipeError(
                "UnitWeights acts on weights whose scale a normalisation layer takes out, and the model has none"
            )
        self.get_buffer("free").copy_(torch.tensor([n in found for n in self.edits], dtype=torch.int8))
        return found
