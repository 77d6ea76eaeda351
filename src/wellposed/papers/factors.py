"""Images made from independent factors, to see whether a code takes them apart."""

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
