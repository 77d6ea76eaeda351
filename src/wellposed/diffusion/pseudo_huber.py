"""Scheduled pseudo-Huber loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..core import implements

__all__ = ["PseudoHuber", "pseudo_huber"]

Fall = Literal["exponential", "snr", "constant"]


def pseudo_huber(error: Tensor, c: Tensor | float) -> Tensor:
    """2 c (sqrt(error^2 + c^2) - c), elementwise: error^2 well below c, 2 c |error| well above.

    Args:
        error: of any shape.
        c: above 0, a number or a tensor that broadcasts against the error.
    """
    c = torch.as_tensor(c, dtype=error.dtype, device=error.device)
    return 2 * c * error.square() / ((error.square() + c.square()).sqrt() + c)  # without cancellation


@implements("scheduled-pseudo-huber")
@dataclass(frozen=True)
class PseudoHuber:
    r"""Scheduled pseudo-Huber loss: a denoiser that does not chase outliers where the noise hides the details.

    Computes:
        In place of the squared error, elementwise, 2 c (sqrt(error^2 + c^2) - c), whose pull is at most 2 c. c falls
        with the noise: 1 without, near ``c0`` at the end. For ``Denoise(distance=PseudoHuber())``, or in any other loop
        by calling it with the error, the time as a share of [0, 1] and log SNR.

    Formula:
        H_c(r) = 2 c \left( \sqrt{r^2 + c^2} - c \right)
        c_t = c_0^{t} \quad \text{(exponential)}
        c_t = \frac{1 - c_0}{(1 + \sigma_t / \alpha_t)^2} + c_0 \quad \text{(snr)}

    Helps:
        When part of the data does not belong there: with a tenth of outliers in the plane, two fifths fewer of the
        samples were outliers after short training. Clean data were sampled no worse.

    Avoid:
        Expecting outliers to go: most stay, and the longer the training the more (three quarters after 1000 steps, not
        600). Expecting much of the schedule: a constant c did as well after 1000 steps, if not after 600. Small c: the
        loss, and with it the learning rate, falls in proportion to it, and c0 0.01 did no better.

    Defaults:
        exponential, c0 0.1, as in the usual implementations; the paper goes down to 0.001.

    Cost:
        One pass.

    Reference:
        Khrapov et al. 2024, Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss,
        arXiv 2403.16728. Elementwise, as in its implementations, and with a c for each sample.

    Args:
        c0: c where there is most noise, or everywhere if constant; above 0, at most 1 unless constant.
        schedule: "exponential" in time, "snr" or "constant".
    """

    c0: float = 0.1
    schedule: Fall = "exponential"

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Fall):
            raise ValueError(f"PseudoHuber: schedule must be one of {', '.join(get_args(Fall))}, got {self.schedule!r}")
        if not 0 < self.c0 <= (math.inf if self.schedule == "constant" else 1):
            most = "" if self.schedule == "constant" else " and at most 1"
            raise ValueError(f"PseudoHuber: c0 must be above 0{most}, got {self.c0:g}")

    def at(self, time: Tensor, log_snr: Tensor) -> Tensor:
        """c at times that are shares of [0, 1], and their log SNR; (B,)."""
        if self.schedule == "exponential":
            return torch.exp(math.log(self.c0) * time)
        if self.schedule == "snr":
            return (1 - self.c0) / (1 + torch.exp(-log_snr / 2)).square() + self.c0
        return torch.full_like(time, self.c0)

    def __call__(self, error: Tensor, time: Tensor, log_snr: Tensor) -> Tensor:
        return pseudo_huber(error, self.at(time, log_snr).view(-1, *[1] * (error.ndim - 1)))
