"""MINDE: divergences, mutual information and entropy from how differently two denoisers see the noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import implements
from ..core.modes import evaluating
from ..parts.critics import same_rows
from ..tasks.denoise import Denoise, prediction_of
from ._samples import refuse_gaps

__all__ = [
    "MINDE",
    "ConditionalDenoiser",
    "DiffusionEstimate",
    "diffusion_entropy",
    "diffusion_information",
    "diffusion_joint_information",
    "diffusion_kl",
]

Denoiser = Callable[..., Any]
GROUPS = 20  # of the standard error
SPAN = 7.0  # of log(sigma / alpha) where times are real, to both sides: it has no ends


class DiffusionEstimate(NamedTuple):
    """In nats.

    Attributes:
        value: the estimate.
        error: standard error of the times, the noise and the samples drawn; not of the denoisers.
    """

    value: float
    error: float


def noise_levels(task: Denoise, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Times of a task and the width of log(sigma / alpha) each stands for, in float64, by the trapezoidal rule."""
    if task.continuous:
        log_ratio = torch.linspace(-SPAN, SPAN, 1001, dtype=torch.float64, device=device)
        times = log_ratio.sigmoid() if task.schedule == "flow" else log_ratio.exp().atan() * (2 / math.pi)
    else:
        times = torch.arange(task.steps, device=device)
        alpha, sigma = task.levels(times, torch.empty(0, dtype=torch.float64))
        log_ratio = sigma.log() - alpha.log()
    gaps = log_ratio.diff()
    zero = gaps.new_zeros(1)
    return times, (torch.cat([gaps, zero]) + torch.cat([zero, gaps])) / 2


def drawn_times(task: Denoise, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Times (count,) with log(sigma / alpha) uniform, one of each of ``count`` equal parts, in order."""
    times, widths = noise_levels(task, device)
    share = (widths / widths.sum()).cumsum(0)
    where = torch.rand(count, generator=generator, device=generator.device if generator else device).to(device)
    place = (torch.arange(count, device=device) + where.double()) / count
    return times[torch.searchsorted(share, place).clamp_max(len(times) - 1)]


@torch.no_grad()
def _integral(
    noises: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    task: Denoise,
    draws: int,
    generator: torch.Generator | None,
    chunk: int,
    models: Sequence[Any],
) -> DiffusionEstimate:
    """Integral over log(sigma / alpha) of the mean squared distance of two noises, each of (x_t, t, rows of x)."""
    if len(x) < 1 or draws < 1 or len(x) * draws < 2 * GROUPS:
        raise ValueError(f"needs at least {2 * GROUPS} draws in all, got {len(x)} rows and {draws} draws of each")
    _refuse(x)
    width = float(noise_levels(task, x.device)[1].sum())
    count = len(x) * draws
    where = generator.device if generator else x.device
    rows = torch.cat([torch.randperm(len(x), generator=generator, device=where) for _ in range(draws)]).to(x.device)
    times = drawn_times(task, count, generator, x.device)
    if task.continuous:
        times = times.to(x.dtype)
    found = []
    with evaluating(*(model for model in models if isinstance(model, nn.Module))):
        for index, t in zip(torch.split(rows, chunk), torch.split(times, chunk), strict=True):
            clean = x[index]
            noise = torch.randn(clean.shape, generator=generator, device=where, dtype=clean.dtype).to(x.device)
            alpha, sigma = task.levels(t, clean)
            one, other = noises(alpha * clean + sigma * noise, t, index)
            apart = (one.double() if x.device.type != "mps" else one.float()) - other
            found.append(apart.square().flatten(1).sum(1))
    terms = width * torch.cat(found)
    groups = terms[: count // GROUPS * GROUPS].view(-1, GROUPS).mean(0)  # each spread over all times
    return DiffusionEstimate(float(terms.mean()), float(groups.std() / math.sqrt(GROUPS)))


def _refuse(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"noise is added to x, which must be of a floating dtype, got {x.dtype}")
    refuse_gaps("MINDE", x=x)


def _noise(task: Denoise, output: Any, x_t: Tensor, t: Tensor) -> Tensor:
    return task.estimates(prediction_of(output), x_t, t)[1]


def diffusion_kl(
    p: Denoiser,
    q: Denoiser,
    x: Tensor,
    task: Denoise,
    draws: int = 1,
    generator: torch.Generator | None = None,
    chunk: int = 8192,
) -> DiffusionEstimate:
    """KL divergence of p from q, by their denoisers, from samples of p.

    Args:
        p, q: denoisers of the two laws, ``model(x_t, t)``: modules or functions, which predict what the task says.
        x: samples of p, (N, ...).
        task: the ``Denoise`` both were trained with: its schedule and what they predict.
        draws: times and noises for each sample.
        generator: of times and noise.
        chunk: rows of one pass.

    Returns:
        the estimate, and how sure it is.

    Raises:
        ValueError: for fewer than 40 draws in all.
    """

    def noises(x_t: Tensor, t: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return _noise(task, p(x_t, t), x_t, t), _noise(task, q(x_t, t), x_t, t)

    return _integral(noises, x, task, draws, generator, chunk, (p, q))


def diffusion_information(
    conditional: Denoiser,
    marginal: Denoiser,
    x: Tensor,
    y: Tensor,
    task: Denoise,
    draws: int = 1,
    generator: torch.Generator | None = None,
    chunk: int = 8192,
) -> DiffusionEstimate:
    """Mutual information of x and y, by a denoiser of x that is told y and one that is not.

    Args:
        conditional: ``model(x_t, t, y)``, y clean.
        marginal: ``model(x_t, t)``.
        x, y: pairs, (N, ...).
        task, draws, generator, chunk: as of ``diffusion_kl``.

    Raises:
        ValueError: for fewer than 40 draws in all, or x and y of different length.
    """
    same_rows(x, y)
    refuse_gaps("MINDE", y=y)

    def noises(x_t: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return _noise(task, conditional(x_t, t, y[rows]), x_t, t), _noise(task, marginal(x_t, t), x_t, t)

    return _integral(noises, x, task, draws, generator, chunk, (conditional, marginal))


def diffusion_joint_information(
    joint: Denoiser,
    x_given_y: Denoiser,
    y_given_x: Denoiser,
    x: Tensor,
    y: Tensor,
    task: Denoise,
    draws: int = 1,
    generator: torch.Generator | None = None,
    chunk: int = 8192,
) -> DiffusionEstimate:
    """Mutual information of x and y, by a denoiser of both at once and one of each that is told the other, clean.

    Args:
        joint: ``model(both, t)`` of noisy x and y side by side, (N, d + k), both at time t.
        x_given_y, y_given_x: ``model(x_t, t, y)`` and ``model(y_t, t, x)``.
        x, y: pairs, (N, d) and (N, k).
        task, draws, generator, chunk: as of ``diffusion_kl``.

    Raises:
        ValueError: for fewer than 40 draws in all, or x and y of different length.
    """
    same_rows(x, y)
    refuse_gaps("MINDE", y=y)
    width = x.shape[1]

    def noises(both: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        x_t, y_t = both[:, :width], both[:, width:]
        of_x = _noise(task, x_given_y(x_t, t, y[rows]), x_t, t)
        of_y = _noise(task, y_given_x(y_t, t, x[rows]), y_t, t)
        return _noise(task, joint(both, t), both, t), torch.cat([of_x, of_y], 1)

    return _integral(noises, torch.cat([x, y], 1), task, draws, generator, chunk, (joint, x_given_y, y_given_x))


def diffusion_entropy(
    model: Denoiser,
    x: Tensor,
    task: Denoise,
    std: float = 1.0,
    draws: int = 1,
    generator: torch.Generator | None = None,
    chunk: int = 8192,
) -> DiffusionEstimate:
    """Differential entropy of x: that of a Gaussian with the same second moment about 0, less the KL divergence.

    Args:
        model: denoiser of x, ``model(x_t, t)``.
        x: samples, (N, ...); best near mean 0 and variance std^2.
        task, draws, generator, chunk: as of ``diffusion_kl``.
        std: of the Gaussian N(0, std^2) compared with, above 0.

    Raises:
        ValueError: for fewer than 40 draws in all, or 2 rows, or a std that is not positive.
    """
    if not std > 0 or len(x) < 2:
        raise ValueError(f"diffusion_entropy: needs std above 0 and at least 2 rows, got {std:g} and {len(x)}")

    def noises(x_t: Tensor, t: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = task.levels(t, x_t)
        gaussian = sigma * x_t / ((alpha * std) ** 2 + sigma**2)
        return _noise(task, model(x_t, t), x_t, t), gaussian

    divergence = _integral(noises, x, task, draws, generator, chunk, (model,))
    square = x.flatten(1).double().square().sum(1) / (2 * std**2)
    constant = x[0].numel() / 2 * math.log(2 * math.pi * std**2)
    error = math.hypot(divergence.error, float(square.std()) / math.sqrt(len(x)))
    return DiffusionEstimate(constant + float(square.mean()) - divergence.value, error)


class ConditionalDenoiser(nn.Module):
    """SiLU layers that predict the noise of x from (x_t, t, y), with y known or not.

    Args:
        x_width, y_width: numbers of a row, flattened.
        width: of the three hidden layers.
        period: times are divided by it.
    """

    def __init__(self, x_width: int, y_width: int, width: int = 128, period: float = 1000.0) -> None:
        super().__init__()
        self.period = period
        layers: list[nn.Module] = []
        for before in (x_width + y_width + 9, width, width):
            layers += [nn.Linear(before, width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, x_width))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor, known: Tensor) -> Tensor:
        """The noise, of x_t's shape."""
        time = t.to(x_t)[:, None] / self.period
        angles = time * math.pi * torch.tensor([1.0, 2.0, 4.0]).to(x_t)
        rows = [v.reshape(len(x_t), -1).to(x_t) for v in (x_t, y, known)]
        found: Tensor = self.net(torch.cat([*rows, time, time.sqrt(), angles.sin(), angles.cos()], 1))
        return found.view_as(x_t)


@implements("minde")
class MINDE(nn.Module):
    r"""MINDE: mutual information from one denoiser that is told the other variable half of the time.

    Computes:
        A net that predicts the noise of x, told y or not, is trained on the error of the noise. The information is the
        integral over noise levels of the mean squared distance of its two answers; with the logarithm of sigma over
        alpha as the variable there is no weight, whatever the schedule.

    Formula:
        \mathrm{KL}(p, q) = \int_0^T \frac{g(t)^2}{2} \, \mathbb{E}_{p_t} \lVert s_p(x_t) - s_q(x_t) \rVert^2 \, dt
        = \int \mathbb{E} \lVert \hat\epsilon_p - \hat\epsilon_q \rVert^2 \, d \log \frac{\sigma}{\alpha}
        I(X; Y) = \int \mathbb{E} \lVert \hat\epsilon(x_t \mid y) - \hat\epsilon(x_t) \rVert^2
        \, d \log \frac{\sigma}{\alpha}

    Helps:
        Measuring information with a net that is learned by regression, without the variance of density ratios: of
        normals with 0.3 to 2.3 nats in two coordinates, 0.7 in five, it missed by at most a tenth after 2000 batches
        of 256. Reading divergences, information and entropies off denoisers one has, by ``diffusion_kl``,
        ``diffusion_information``, ``diffusion_joint_information`` and ``diffusion_entropy``.

    Avoid:
        Taking it for a bound: errors of the net add to the distance, so that it reads a little above 0 where there is
        nothing, 0.002 nats in the same trial. Variables of other scale than variance 1. Information that shows at noise
        below the schedule's least (1 % of the linear one): it is cut off.

    Defaults:
        The linear schedule of 1000 steps, y told with probability one half, noise levels uniform in log(sigma / alpha),
        as the paper's importance sampling.

    Cost:
        A pass to train, two to measure.

    Reference:
        Franzese, Bounoua, Michiardi 2024, MINDE: Mutual Information Neural Diffusion Estimation, arXiv 2310.09031,
        Eqs. 8, 16 and 20; its conditional form. With t drawn as there the weight g^2 / 2 on scores is a constant, as
        g^2 dt / sigma^2 = 2 d log(sigma / alpha).

    Args:
        net: ``net(x_t, t, y, known)`` -> the prediction, of x_t's shape; y is 0 where ``known`` (B,), 0 or 1, is 0.
            ``ConditionalDenoiser`` is one.
        task: schedule, and what the net predicts.
        told: probability that y is told, above 0 and below 1.
    """

    def __init__(self, net: nn.Module, task: Denoise | None = None, told: float = 0.5) -> None:
        super().__init__()
        if not 0 < told < 1:
            raise ValueError(f"MINDE: told must be above 0 and below 1, got {told:g}")
        self.net, self.task, self.told = net, task or Denoise(), told

    def forward(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the noise over a batch of pairs, a scalar to descend."""
        same_rows(x, y)
        where = generator.device if generator else x.device
        t = drawn_times(self.task, len(x), generator, x.device)
        t = t.to(x.dtype) if self.task.continuous else t
        known = (torch.rand(len(x), generator=generator, device=where) < self.told).to(x.device)
        noise = torch.randn(x.shape, generator=generator, device=where, dtype=x.dtype).to(x.device)
        alpha, sigma = self.task.levels(t, x)
        x_t = alpha * x + sigma * noise
        return (_noise(self.task, self._net(x_t, t, y, known), x_t, t) - noise).square().mean()

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        steps: int = 2000,
        batch: int = 256,
        lr: float = 2e-3,
        generator: torch.Generator | None = None,
    ) -> MINDE:
        """Train the net on pairs, and return this module: Adam with a rate that rises and falls once.

        Autocast and ``no_grad`` around it have no say: in a region of autocast weights that train would be read from a
        cache.

        Args:
            x, y: pairs, (N, ...), of variance about 1.
            steps: updates, at least 1.
            batch: pairs of each, drawn with replacement.
            lr: the highest rate.
            generator: of pairs, times and noise.

        Raises:
            ValueError: if x and y differ in rows or hold NaN, x is not floating, or there are no steps.
        """
        same_rows(x, y)
        if steps < 1 or batch < 1:
            raise ValueError(f"MINDE: steps and batch must be at least 1, got {steps} and {batch}")
        _refuse(x)
        refuse_gaps("MINDE", y=y)
        where = generator.device if generator else x.device
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            for _ in range(steps):
                rows = torch.randint(len(x), (batch,), generator=generator, device=where).to(x.device)
                optimizer.zero_grad()
                self(x[rows], y[rows], generator).backward()
                optimizer.step()
                schedule.step()
        return self

    def information(
        self, x: Tensor, y: Tensor, draws: int = 1, generator: torch.Generator | None = None
    ) -> DiffusionEstimate:
        """Mutual information of pairs that did not train the net.

        Args:
            x, y: pairs, (N, ...).
            draws: times and noises for each pair.
            generator: of times and noise.
        """

        def conditional(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return self._net(x_t, t, y, t.new_ones(len(t), dtype=torch.bool))

        def marginal(x_t: Tensor, t: Tensor) -> Tensor:
            return self._net(x_t, t, y[:1].expand(len(t), *y.shape[1:]), t.new_zeros(len(t), dtype=torch.bool))

        with evaluating(self):
            return diffusion_information(conditional, marginal, x, y, self.task, draws, generator)

    def _net(self, x_t: Tensor, t: Tensor, y: Tensor, known: Tensor) -> Tensor:
        told = known.view(-1, *[1] * (y.ndim - 1))
        return prediction_of(self.net(x_t, t, y * told.to(y.dtype), known.to(x_t.dtype)))

    def extra_repr(self) -> str:
        """Its settings."""
        return f"task={self.task!r}, told={self.told:g}"
