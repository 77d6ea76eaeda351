"""Min-SNR weighting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..core import implements
from .snr_weights import SNRWeight

__all__ = ["MinSNR"]


@implements("min-snr-weighting")
@dataclass(frozen=True)
class MinSNR(SNRWeight):
    r"""Min-SNR: weigh a diffusion's times by their signal-to-noise ratio, cut from above.

    Computes:
        The weight of the squared error of a denoiser at signal-to-noise ratio SNR: min(SNR, gamma) on the clean sample,
        and what is the same objective on the noise, on v or on the velocity. For ``Denoise(weighting=MinSNR())``, or by
        ``weight(snr, prediction)`` in any other loop.

    Formula:
        \ell = \min(\mathrm{SNR}, \gamma) \, \lVert x - \hat x \rVert^2
        \ell = \frac{\min(\mathrm{SNR}, \gamma)}{\mathrm{SNR}} \, \lVert \epsilon - \hat \epsilon \rVert^2
        \ell = \frac{\min(\mathrm{SNR}, \gamma)}{\mathrm{SNR} + 1} \, \lVert v - \hat v \rVert^2
        \mathrm{SNR} = \frac{\alpha_t^2}{\sigma_t^2}

    Helps:
        One objective whatever the model predicts: neither times of hardly any noise (clean sample, where plain SNR
        weights explode) nor of nothing but noise take over. The paper reports that large image models train three
        times as fast.

    Avoid:
        Expecting better samples on small problems. On eight Gaussians in the plane samples became worse: what makes
        them sharp there are the times of little noise, whose weight it lowers. The error of the clean sample fell in
        one setting, all of it at high noise, and moved either way in another.

    Defaults:
        gamma 5, the paper's.

    Cost:
        Nothing.

    Reference:
        Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy, arXiv 2303.09556, section 3.4.
        SNR is held within exp(-20) ... exp(20), which leaves the weights finite where it is 0 or infinite.

    Args:
        gamma: the ratio above which times weigh alike (on the clean sample); above 0.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"MinSNR: gamma must be above 0, got {self.gamma:g}")

    def __call__(self, log_snr: Tensor) -> Tensor:
        return (math.log(self.gamma) - log_snr).clamp(max=0).exp()
