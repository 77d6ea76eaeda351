"""Weights of the times of a diffusion: functions of the signal-to-noise ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ..tasks.noise_levels import RANGE, Predict, noise_error

__all__ = ["P2", "PowerSNR", "SNRWeight", "TruncatedSNR"]


class SNRWeight:
    """Base of the weights of a denoising loss. ``Denoise(weighting=...)`` takes one, and so can any other loop.

    Called with log SNR, of any shape, it is the weight of the squared error of the noise; that defines the objective,
    and ``weight`` says what it amounts to for a model that predicts something else. SNR = alpha^2 / sigma^2.
    """

    def __call__(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError

    def weight(self, snr: Tensor, prediction: Predict = "epsilon") -> Tensor:
        """What to multiply the squared error of a prediction with.

        Args:
            snr: of any shape; held within exp(-20) ... exp(20), so that 0 and infinity do no harm.
            prediction: ``"epsilon"``, ``"x0"``, ``"v"`` of a variance-preserving schedule, or ``"velocity"`` noise - x.

        Raises:
            ValueError: for another name.
        """
        if prediction not in get_args(Predict):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Predict))}, got {prediction!r}")
        log_snr = snr.log().clamp(-RANGE, RANGE)
        alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        return self(log_snr) * noise_error(prediction, alpha, sigma).square()


@dataclass(frozen=True)
class PowerSNR(SNRWeight):
    """SNR^-power on the noise: power 0 weighs all errors of the noise alike, power 1 all errors of the clean sample."""

    power: float = 0.0

    def __call__(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-self.power * log_snr)


@dataclass(frozen=True)
class TruncatedSNR(SNRWeight):
    """max(SNR, least) on the clean sample, max(1, least / SNR) on the noise: high noise keeps a weight.

    Salimans, Ho 2022, Progressive Distillation, arXiv 2202.00512, section 4 (least 1).
    """

    least: float = 1.0

    def __post_init__(self) -> None:
        if not self.least > 0:
            raise ValueError(f"TruncatedSNR: least must be above 0, got {self.least:g}")

    def __call__(self, log_snr: Tensor) -> Tensor:
        return (self.least * torch.exp(-log_snr)).clamp_min(1)


@dataclass(frozen=True)
class P2(SNRWeight):
    """1 / (k + SNR)^gamma on the noise: low noise counts less.

    Choi et al. 2022, Perception Prioritized Training of Diffusion Models, arXiv 2204.00227, section 3 (k 1, gamma 1).
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise ValueError(f"P2: k must be above 0, got {self.k:g}")

    def __call__(self, log_snr: Tensor) -> Tensor:
        return (self.k + log_snr.exp()).pow(-self.gamma)
