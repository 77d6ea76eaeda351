"""Monge gap: how far a map is from moving points at the least cost."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core import implements
from ..parts.sinkhorn import sinkhorn

__all__ = ["Cost", "monge_gap", "pairwise", "sinkhorn_divergence", "squared_distance"]

Cost = Callable[[Tensor, Tensor], Tensor]
"""Points (..., d) and (..., d), broadcast -> costs (...)."""


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """||x - y||^2 over the last dimension."""
    return (x - y).square().sum(-1)


def pairwise(x: Tensor, y: Tensor, cost: Cost = squared_distance) -> Tensor:
    """Costs of all pairs: x (..., n, d) and y (..., m, d) to (..., n, m)."""
    if cost is not squared_distance:
        return cost(x.unsqueeze(-2), y.unsqueeze(-3))
    centre = y.mean(-2, keepdim=True).detach()  # the product below loses less
    x, y = x - centre, y - centre
    squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * x @ y.mT).clamp_min(0)


def sinkhorn_divergence(
    x: Tensor, y: Tensor, *, cost: Cost = squared_distance, epsilon: float | None = None, tol: float = 1e-4
) -> Tensor:
    """Distance of two point clouds: W(x, y) - W(x, x) / 2 - W(y, y) / 2 with entropic W.

    At least 0 for the squared distance, and 0 only for equal clouds; without the bias of W alone, which shrinks them.

    Args:
        x, y: points (..., n, d) and (..., m, d) of equal weights.
        cost: symmetric.
        epsilon: in units of the cost; None: 5 % of the mean cost from x to y.
        tol: on the marginal errors.

    Raises:
        NotConverged: if the tolerance is not met.
    """
    across = pairwise(x, y, cost)
    eps = _epsilon(across, epsilon)
    within = [pairwise(z, z, cost) for z in (x, y)]
    if x.shape == y.shape:
        both, first, second = sinkhorn(torch.stack([across, *within]), epsilon=eps.expand(3, *eps.shape), tol=tol).value
    else:
        both, first, second = (sinkhorn(c, epsilon=eps, tol=tol).value for c in (across, *within))
    return both - (first + second) / 2


@implements("monge-gap")
def monge_gap(
    x: Tensor,
    mapped: Tensor,
    *,
    cost: Cost = squared_distance,
    epsilon: float | None = None,
    tol: float = 1e-4,
) -> Tensor:
    r"""Monge gap: the mean cost of moving points to their images, less the least cost between the two clouds.

    Computes:
        The mean cost of x -> T(x), minus the entropic optimal transport cost from the points to their images.

    Formula:
        M(T) = \frac{1}{n} \sum_i c(x_i, T(x_i)) - W_{\epsilon}
        W_\epsilon = \min_P \langle P, C \rangle - \epsilon H(P)
        C_{ij} = c(x_i, T(x_j)), \quad H(P) = - \sum_{ij} P_{ij} \log P_{ij}

    Helps:
        Learning transport maps for any cost: added to a fitting loss such as ``sinkhorn_divergence``, it chooses among
        the maps that fit the one that moves least.

    Avoid:
        A strength of 1 under a short budget: it holds the map near the identity. Reading the value as the gap itself:
        it is between epsilon log n and 2 epsilon log n above it; compare maps at one epsilon.

    Defaults:
        Squared distance; epsilon 5 % of the mean cost. A strength of about 0.1 times this term.

    Cost:
        An entropic transport problem of n x n costs; the gradient needs no more (envelope theorem).

    Reference:
        Uscidda, Cuturi 2023, The Monge Gap: A Regularizer to Learn All Transport Maps, arXiv 2302.04953; its
        estimator from samples.

    Args:
        x: points (..., n, d).
        mapped: their images T(x), of the same shape.
        cost: of moving a point to another.
        epsilon: in units of the cost; None: 5 % of the mean cost.
        tol: on the marginal errors.

    Returns:
        the gap (...), at least epsilon log n; differentiable once in both arguments.

    Raises:
        NotConverged: if the tolerance is not met.
        ValueError: if the shapes differ.
    """
    if x.shape != mapped.shape or x.ndim < 2:
        raise ValueError(
            f"points and images must have the same shape (..., n, d), got {tuple(x.shape)} and {tuple(mapped.shape)}"
        )
    across = pairwise(x, mapped, cost)
    eps = _epsilon(across, epsilon)
    # the solver's entropy is relative to equal weights, and lower by 2 log n
    least = sinkhorn(across, epsilon=eps, tol=tol).value - 2 * math.log(x.shape[-2]) * eps
    return cost(x, mapped).mean(-1) - least


def _epsilon(cost: Tensor, epsilon: float | None) -> Tensor:
    """One for each problem of the batch."""
    if epsilon is not None:
        return cost.new_full(cost.shape[:-2], epsilon)
    return (0.05 * cost.detach().mean((-2, -1))).clamp_min(torch.finfo(cost.dtype).tiny)
