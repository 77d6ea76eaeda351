"""Levels of noise: schedules of variances, and the algebra of x_t = alpha x + sigma noise."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Predict = Literal["epsilon", "x0", "v", "velocity"]
RANGE = 20.0  # log SNR is held within +-20, so that nothing divides by 0 at the ends of time


def linear_betas(steps: int) -> Tensor:
    """Noise variances rising from 1e-4 to 0.02, for any number of steps (scaled by 1000 / steps); float64 (steps,).

    Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv 2006.11239, section 4 (steps = 1000).
    """
    scale = 1000 / steps
    return torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp(max=0.999)


def cosine_betas(steps: int) -> Tensor:
    """Noise variances whose signal follows a squared cosine; float64 (steps,), at most 0.999.

    Nichol, Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models, arXiv 2102.09672, Eq. 17.
    """
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


def log_snr_of(alpha: Tensor, sigma: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2), within [-20, 20]."""
    return (2 * (alpha.log() - sigma.log())).clamp(-RANGE, RANGE)


def target_of(predict: Predict, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a model that predicts ``predict`` is to answer."""
    if predict == "epsilon":
        return noise
    if predict == "x0":
        return x
    return alpha * noise - sigma * x if predict == "v" else noise - x


def noise_error(predict: Predict, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What to multiply the prediction's error by to get that of the noise at the same x_t, up to its sign."""
    if predict == "epsilon":
        return torch.ones_like(alpha)
    if predict == "x0":
        return (log_snr_of(alpha, sigma) / 2).exp()
    return alpha / (alpha.square() + sigma.square() if predict == "v" else alpha + sigma)


def estimates(predict: Predict, prediction: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The clean sample and the noise that a prediction at x_t amounts to: alpha x0 + sigma noise = x_t.

    Where there is no signal a predicted noise says nothing of the clean sample, nor without noise a clean sample of the
    noise; the divisor is then held at 1e-12.
    """
    least = 1e-12
    if predict == "epsilon":
        return (x_t - sigma * prediction) / alpha.clamp_min(least), prediction
    if predict == "x0":
        return prediction, (x_t - alpha * prediction) / sigma.clamp_min(least)
    if predict == "v":
        total = alpha.square() + sigma.square()
        return (alpha * x_t - sigma * prediction) / total, (sigma * x_t + alpha * prediction) / total
    total = alpha + sigma
    return (x_t - sigma * prediction) / total, (x_t + alpha * prediction) / total
