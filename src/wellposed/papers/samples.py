"""How close generated samples come to data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..parts.spectra import covariance


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """||m_x - m_y||^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)): squared 2-Wasserstein distance of the fitted normal laws.

    Args:
        x: (N, D), N above 1.
        y: (M, D).

    Returns:
        at least 0, in squared units of x; computed in float64.
    """
    x, y = x.detach().double(), y.detach().double()
    one, two = covariance(x, 1), covariance(y, 1)
    cross = torch.linalg.svdvals(_root(one) @ _root(two)).sum()  # tr (A B)^(1/2) is the nuclear norm of A^(1/2) B^(1/2)
    gap = (x.mean(0) - y.mean(0)).square().sum()
    return max(float(gap + one.trace() + two.trace() - 2 * cross), 0.0)


def principal(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the ``width`` leading principal directions (D, width) of x (N, D): features for distances."""
    mean = x.mean(0)
    return mean, torch.linalg.svd(x - mean, full_matrices=False).Vh[:width].T


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T
