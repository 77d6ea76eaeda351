"""Neighbours: distances between rows, the k nearest, and the local intrinsic dimension they tell."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .spectra import wide


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """||x_i - y_j||^2, at least 0; exactly 0 on the diagonal where y is x.

    By one product of matrices in place of N M D differences. Both are centred on the mean of y first, so that a common
    offset costs no digits; what is left is an error of about 1e-7 of the squared lengths in float32.

    Args:
        x: (N, D).
        y: (M, D); None: x itself.

    Returns:
        shape (N, M), in at least float32.
    """
    if y is None:
        x = wide(x)
        y = x = x - x.mean(0)
    else:
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        x, y = x.to(dtype), y.to(dtype)
        centre = y.mean(0)
        x, y = x - centre, y - centre
    with torch.autocast(x.device.type, enabled=False):
        cross = x @ y.T
    if y is x:
        own = other = cross.diagonal()  # the same sums in the same order: they cancel to the last digit
    else:
        own, other = x.square().sum(1), y.square().sum(1)
    return (own[:, None] + other - 2 * cross).clamp_min(0)


def nearest(x: Tensor, k: int, reference: Tensor | None = None, same: bool | None = None) -> tuple[Tensor, Tensor]:
    """Distances to the k nearest rows, ascending, and which rows they are.

    The gradient is 0 at duplicates, where the distance has none.

    Args:
        x: (N, D).
        k: number of neighbours, at least 1.
        reference: (M, D), among which they are sought; None: x itself.
        same: whether row i of the reference is row i of x, which then is no neighbour of its own; None: only without
            a reference. ``nearest(x, k, x.detach(), same=True)`` moves x alone.

    Returns:
        distances and indices, both (N, k).

    Raises:
        ValueError: if there are fewer than k neighbours.
    """
    same = reference is None if same is None else same
    rows = len(x if reference is None else reference) - same
    if not 1 <= k <= rows:
        raise ValueError(f"nearest: k must be 1 to {rows}, the number of neighbours there are, got {k}")
    square = squared_distances(x, reference)
    if same:
        square = square.masked_fill(torch.eye(*square.shape, dtype=torch.bool, device=square.device), torch.inf)
    found, index = square.topk(k, largest=False)
    return found.clamp_min(torch.finfo(found.dtype).tiny).sqrt(), index


def local_dimension(distances: Tensor, method: Literal["mom", "mle"] = "mom") -> Tensor:
    """Local intrinsic dimension from distances to the k nearest neighbours.

    Exact in expectation where distances below r grow like (d / r)^dimension; a neighbourhood cut off by the boundary
    of the data looks lower-dimensional. The right average over samples is the geometric mean.

    Args:
        distances: (..., k), ascending, k at least 2. The k-th is the radius and no sample.
        method: "mom": m / (r - m), m the mean of the k - 1 nearer distances, r the k-th (Amsaleg et al. 2018, method
            of moments). "mle": 1 / mean log(r / d_j) over the k - 1 nearer (Levina, Bickel 2004, Hill's estimator).

    Returns:
        shape (...), above 0; large, never infinite, where all distances agree.

    Raises:
        ValueError: for another method, or fewer than two distances.
    """
    if distances.shape[-1] < 2:
        raise ValueError("local_dimension: needs distances to at least 2 neighbours")
    near, radius = distances[..., :-1], distances[..., -1:]
    smallest = torch.finfo(distances.dtype).eps
    ratio = near / radius
    if method == "mom":
        mean = ratio.mean(-1)
        return mean / (1 - mean).clamp_min(smallest)
    if method == "mle":
        return 1 / (-ratio.clamp_min(smallest).log().mean(-1)).clamp_min(smallest)
    raise ValueError(f"local_dimension: method must be 'mom' or 'mle', got {method!r}")
