"""Exposure bias: how far the states of a sampler are from those a denoiser was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..parts.samplers import ddpm, sampling_levels
from ..parts.spectra import wide
from ..tasks.denoise import Denoise

__all__ = ["ExposureBias", "exposure_bias"]


@dataclass(frozen=True)
class ExposureBias:
    """Root mean variance of a coordinate, (steps + 1,) in float64, from the noise to the samples.

    Attributes:
        alpha, sigma: levels of the states.
        sampled: of the sampler's states.
        trained: of the states the model was trained on, alpha x + sigma noise.
    """

    alpha: Tensor
    sigma: Tensor
    sampled: Tensor
    trained: Tensor

    @property
    def drift(self) -> Tensor:
        """sampled / trained - 1: 0 where a state is as wide as it should be, above where it is too wide."""
        return self.sampled / self.trained - 1


@torch.no_grad()
def exposure_bias(
    model: Callable[[Tensor, Tensor], Any],
    task: Denoise,
    x: Tensor,
    noise: Tensor,
    *,
    steps: int | None = None,
    sampler: Callable[..., Tensor] = ddpm,
    **settings: Any,
) -> ExposureBias:
    """Width of a sampler's states at every level, beside that of the noisy data.

    Training shows a denoiser noisy data; sampling shows it what it made itself. Where errors add up, the states grow
    or shrink away from the data's, which can be seen before a sample is. The last of them are the samples.

    Args:
        model: called as model(x_t, t).
        task: what it was trained on.
        x: data (N, ...), at least 2.
        noise: standard normal (B, ...), at least 2: the sampler's first state.
        steps: of the sampler; None: ``task.steps``.
        sampler: of ``wellposed.parts.samplers``, or one like them.
        settings: the sampler's further ones.

    Raises:
        ValueError: for fewer than two points.
    """
    if len(x) < 2 or len(noise) < 2:
        raise ValueError(f"exposure_bias needs at least 2 data and 2 samples, got {len(x)} and {len(noise)}")
    _, alpha, sigma = sampling_levels(task, steps)
    states = sampler(model, task, noise, steps=steps, trajectory=True, **settings)
    sampled = torch.stack([_variance(state) for state in states])
    trained = alpha.square() * _variance(x) + sigma.square()
    return ExposureBias(alpha, sigma, sampled.sqrt(), trained.sqrt())


def _variance(x: Tensor) -> Tensor:
    """Mean over coordinates of the variance over points; a float64 on the CPU."""
    return wide(x).flatten(1).var(0).mean().cpu().double()
