"""Samplers: from noise to samples, with any denoiser of a ``Denoise`` task, whatever it predicts.

All see a denoiser as what it says of the clean sample and of the noise, alpha x0 + sigma noise = x_t, so that one
formula serves variance-preserving schedules and the straight path. ``noise`` (B, ...) is standard normal; samples have
its shape, device and dtype. A model that takes more than (x_t, t), such as a class, is given as a function of these
two. Modules sample in evaluation mode (behind a function of your own switch it on yourself), nothing keeps a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core.modes import evaluating
from ..tasks.denoise import Denoise, prediction_of
from ..tasks.noise_levels import estimates

__all__ = ["ddim", "ddpm", "euler", "heun", "sampling_levels"]

Denoiser = Callable[[Tensor, Tensor], Any]
Variance = Literal["posterior", "beta"]
Box = tuple[float, float]


def sampling_levels(task: Denoise, steps: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Where a sampler of so many steps calls the model, and how noisy its states are.

    Args:
        task: says what t means.
        steps: evenly spaced times from the noisiest on; None: ``task.steps``. Real times begin with 1, or where the
            noise is predicted, which says nothing at 1, with 0.999.

    Returns:
        times (steps,) falling, integers for a discrete schedule; and alpha and sigma (steps + 1,) of the states, the
        last of which is clean, in float64 on the CPU.

    Raises:
        ValueError: for no steps, or more than a discrete schedule has.
    """
    steps = task.steps if steps is None else steps
    if steps < 1 or (steps > task.steps and not task.continuous):
        raise ValueError(f"steps must be 1 to {task.steps} with {task!r}, got {steps}")
    if task.continuous:
        times = torch.linspace(0.999 if task.predict == "epsilon" else 1.0, 0.0, steps + 1, dtype=torch.float64)[:-1]
    else:
        times = torch.linspace(task.steps - 1, 0, steps, dtype=torch.float64).round().long()
    alpha, sigma = task.levels(times, torch.empty(0, dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    return times, torch.cat([alpha, one]), torch.cat([sigma, 0 * one])


def ddpm(
    model: Denoiser,
    task: Denoise,
    noise: Tensor,
    *,
    steps: int | None = None,
    variance: Variance = "posterior",
    generator: torch.Generator | None = None,
    clamp: Box | None = None,
    trajectory: bool = False,
) -> Tensor:
    """Ancestral sampling: at each step a draw from the Gaussian posterior of the less noisy state, given x0.

    Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv 2006.11239, Algorithm 2 and Eq. 7.

    Args:
        model: called as model(x_t, t).
        task: what the model was trained on.
        noise: (B, ...), the first state.
        steps: see ``sampling_levels``.
        variance: ``"posterior"``, right if the data are one point, or ``"beta"``, that of the forward step, right if
            they are standard normal and alpha^2 + sigma^2 = 1. The last step adds no noise.
        generator: of the noise that steps add.
        clamp: range to which the estimated clean sample is cut at each step; it matters where the noise is predicted
            and there is hardly any signal, so that small errors become large ones of the clean sample.
        trajectory: return all states.

    Returns:
        samples (B, ...), or (steps + 1, B, ...) with the noise first.
    """
    if variance not in get_args(Variance):
        raise ValueError(f"variance must be posterior or beta, got {variance!r}")
    return _ancestral(model, task, noise, steps, 1.0, variance, generator, clamp, trajectory)


def ddim(
    model: Denoiser,
    task: Denoise,
    noise: Tensor,
    *,
    steps: int | None = 50,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    clamp: Box | None = None,
    trajectory: bool = False,
) -> Tensor:
    """Few steps, and a map from noise to samples: x0 and the noise, both as estimated, are mixed at the next level.

    Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, arXiv 2010.02502, Eq. 12.

    Args:
        model, task, noise, steps, clamp, trajectory: as of ``ddpm``.
        eta: share of the posterior's standard deviation that is drawn anew, 0 to 1; 0 is deterministic, 1 is ``ddpm``.
        generator: of these draws.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be 0 to 1, got {eta:g}")
    return _ancestral(model, task, noise, steps, eta, "posterior", generator, clamp, trajectory)


def euler(
    model: Denoiser,
    task: Denoise,
    noise: Tensor,
    *,
    steps: int | None = 50,
    clamp: Box | None = None,
    trajectory: bool = False,
) -> Tensor:
    """Euler's method for dx = x0 d alpha + noise d sigma, the probability flow: what ``ddim`` is without draws.

    On the straight path dx / dt is the velocity noise - x0. Arguments as of ``ddim``.
    """
    return ddim(model, task, noise, steps=steps, clamp=clamp, trajectory=trajectory)


@torch.no_grad()
def heun(
    model: Denoiser,
    task: Denoise,
    noise: Tensor,
    *,
    steps: int | None = 25,
    clamp: Box | None = None,
    trajectory: bool = False,
) -> Tensor:
    """Heun's method for the probability flow: of second order, two calls of the model a step, one in the last.

    Karras et al. 2022, arXiv 2206.00364, Algorithm 1, here in the coordinates alpha and sigma. Arguments as of
    ``ddim``.
    """
    times, alpha, sigma = sampling_levels(task, steps)
    states, ahead = [noise], list(times[1:])
    with _evaluation(model):
        for i, t in enumerate(times):
            x = states[-1]
            clean, eps = _estimates(model, task, x, t, alpha[i], sigma[i], clamp)
            there = alpha[i + 1] * clean + sigma[i + 1] * eps
            if i < len(ahead):
                then = _estimates(model, task, there, ahead[i], alpha[i + 1], sigma[i + 1], clamp)
                clean, eps = (clean + then[0]) / 2, (eps + then[1]) / 2
                there = x + (alpha[i + 1] - alpha[i]) * clean + (sigma[i + 1] - sigma[i]) * eps
            states = [*states, there] if trajectory else [there]
    return torch.stack(states) if trajectory else states[-1]


@torch.no_grad()
def _ancestral(
    model: Denoiser,
    task: Denoise,
    noise: Tensor,
    steps: int | None,
    eta: float,
    variance: Variance,
    generator: torch.Generator | None,
    clamp: Box | None,
    trajectory: bool,
) -> Tensor:
    """Steps that mix both estimates and fresh noise; ``eta`` is the share of the posterior's deviation in the mean."""
    times, *levels = sampling_levels(task, steps)
    states = [noise]
    with _evaluation(model):
        for t, (alpha, sigma, alpha_, sigma_) in zip(times, _pairs(*levels), strict=True):
            clean, eps = _estimates(model, task, states[-1], t, alpha, sigma, clamp)
            forward = sigma.square() - (alpha / alpha_ * sigma_).square()  # variance of the forward step
            posterior = eta**2 * forward * (sigma_ / sigma).square()
            x = alpha_ * clean + (sigma_.square() - posterior).clamp_min(0).sqrt() * eps
            drawn = posterior if variance == "posterior" else forward
            if eta and sigma_:
                x = x + drawn.clamp_min(0).sqrt() * torch.randn(
                    x.shape, dtype=x.dtype, device=x.device, generator=generator
                )
            states = [*states, x] if trajectory else [x]
    return torch.stack(states) if trajectory else states[-1]


def _pairs(alpha: Tensor, sigma: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """alpha and sigma of each state and of the next."""
    return zip(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], strict=True)


def _estimates(
    model: Denoiser, task: Denoise, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, clamp: Box | None
) -> tuple[Tensor, Tensor]:
    """The clean sample and the noise, as the model has them at x."""
    when = t.to(x.dtype) if task.continuous else t
    said = prediction_of(model(x, when.to(x.device).expand(len(x))))
    clean, eps = estimates(task.predict, said, x, alpha, sigma)
    if clamp is not None:
        return estimates("x0", clean.clamp(*clamp), x, alpha, sigma)
    return clean, eps


def _evaluation(model: Denoiser) -> Any:
    return evaluating(model) if isinstance(model, nn.Module) else nullcontext()
