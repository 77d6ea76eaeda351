"""Data made from few known factors, to see what a code makes of them."""

from __future__ import annotations

import torch
from torch import Tensor


def blobs(seed: int, rows: int = 1800) -> tuple[Tensor, Tensor]:
    """Images of 8 x 8 pixels in [0, 1] with one round blob, (rows, 64), and its three factors, (rows, 3).

    The factors are uniform in [0, 1] and independent: place across and down, within the middle three pixels, and width,
    a standard deviation of 0.7 to 1.5 pixels.
    """
    factors = torch.rand(rows, 3, generator=torch.Generator().manual_seed(seed))
    places = 2 + 3 * factors[:, :2, None]
    width = 0.7 + 0.8 * factors[:, 2, None]
    across, down = (-((torch.arange(8) - places) ** 2) / (2 * width[:, None] ** 2)).exp().unbind(1)
    return (down[:, :, None] * across[:, None, :]).flatten(1), factors


def surface(seed: int, rows: int = 2000) -> Tensor:
    """Points of a curved surface in 20 dimensions, (rows, 20), centred.

    (a, b, sin 2a, cos 2b, ab / 2), turned at random, with a and b uniform in [-1.5, 1.5]: two factors, in five
    directions.
    """
    g = torch.Generator().manual_seed(seed)
    a, b = 3 * torch.rand(2, rows, generator=g) - 1.5
    bent = torch.stack([a, b, (2 * a).sin(), (2 * b).cos(), a * b / 2], 1)
    return (bent - bent.mean(0)) @ torch.linalg.qr(torch.randn(20, 20, generator=g)).Q[:5]
