"""Debiased estimation: a weight that keeps the implied clean sample right at high noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import implements
from .snr_weights import SNRWeight

__all__ = ["Debiased"]


@implements("debias-diffusion-weight")
@dataclass(frozen=True)
class Debiased(SNRWeight):
    r"""Debiased diffusion weights: times of high noise count by the inverse root of their signal-to-noise ratio.

    Computes:
        The weight of the squared error of a denoiser: SNR^(-1/2) on the noise, SNR above ``clip`` counting as clip. An
        error of the noise is one of the clean sample 1 / SNR times as large, so that a constant weight on the noise
        neglects the clean sample where there is much noise; this is half way, in logarithms, between the two.
        For ``Denoise(weighting=Debiased())``, or by ``weight(snr, prediction)`` in any other loop.

    Formula:
        \ell = \frac{1}{\sqrt{\mathrm{SNR}}} \, \lVert \epsilon - \hat \epsilon \rVert^2
        \ell = \sqrt{\mathrm{SNR}} \, \lVert x - \hat x \rVert^2
        \ell = \frac{\sqrt{\mathrm{SNR}}}{\mathrm{SNR} + 1} \, \lVert v - \hat v \rVert^2

    Helps:
        The clean sample as it is estimated from much noise: on eight Gaussians in the plane its squared error, averaged
        over times, fell seventy-fold. That is what sampling in very few steps, and guidance, start from.

    Avoid:
        Small models whose samples are to be sharp: those nets sampled twice as far from the data (sliced Wasserstein
        distance), and where there is more signal than noise their squared error of the clean sample was two to six
        times as large. Weights reach 100 and more at high noise: without an optimizer that adapts to their scale, lower
        the learning rate.

    Defaults:
        clip 1000, as in the usual implementations.

    Cost:
        Nothing.

    Reference:
        Yu et al. 2023, Debias the Training of Diffusion Models, arXiv 2310.08442. For v some trainers use
        1 / (SNR + 1), which is another objective: it differs from the one above by a factor sqrt(SNR).

    Args:
        clip: SNR above which all times weigh alike (on the noise); above 0, infinite for none.
    """

    clip: float = 1000.0

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"Debiased: clip must be above 0, got {self.clip:g}")

    def __call__(self, log_snr: Tensor) -> Tensor:
        return torch.exp(log_snr.clamp(max=math.log(self.clip)) / -2)
