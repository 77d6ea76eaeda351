"""Rounding to uniform grids, with gradients that pass through."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["absmax_range", "dequantized", "grid_step", "minmax_range", "quantize", "straight_through"]


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """``value`` exactly, with the gradient of ``source``: what a rounding or a threshold did is not differentiated.

    Bengio, Leonard, Courville 2013 (arXiv 1308.3432). Both in the same shape; ``source`` must be finite.
    """
    return value.detach() + (source - source.detach())  # the difference is 0, so not a bit is lost


def minmax_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of a tensor, without gradient: the range of an asymmetric grid."""
    low, high = torch.aminmax(x.detach())
    return low, high


def absmax_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """-a and a, a being the largest magnitude, without gradient: the range of a symmetric grid."""
    low, high = torch.aminmax(x.detach())
    top = torch.maximum(-low, high)
    return -top, top


def grid_step(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Distance of neighbouring values in a grid of 2^bits from ``low`` to ``high``; tiny, not 0, for an empty range."""
    return ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(low.dtype).tiny)


def quantize(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Nearest of 2^bits values, spaced evenly from ``low`` to ``high``.

    Args:
        x: any shape; what lies outside the range goes to its end.
        low, high: broadcast against ``x``; may be learned.
        bits: at least 1.

    Returns:
        shape of ``x``. The rounding counts as the identity in the gradient: x has gradient 1 inside the range and 0
        outside, and ``low`` and ``high`` have that of the clipping and of the spacing (as in LSQ, arXiv 1902.08153).
    """
    step = grid_step(low, high, bits)
    place = (torch.minimum(torch.maximum(x, low), high) - low) / step
    return straight_through(place.round(), place) * step + low


def dequantized(x: Tensor, bits: int, symmetric: bool = False) -> Tensor:
    """``x`` rounded to 2^bits values over its own range, and passed through in the gradient (which is 1 everywhere).

    The range is the tensor's smallest to largest value, or symmetric about 0; nothing is clipped.
    """
    low, high = (absmax_range if symmetric else minmax_range)(x)
    return straight_through(quantize(x.detach(), low, high, bits), x)
