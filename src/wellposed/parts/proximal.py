"""Proximal maps: argmin_x 1/2 ||x - v||^2 + penalty(x), for penalties that make weights, groups or ranks vanish."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["envelope", "envelope_shrinkage", "group_shrink", "hard_threshold", "nuclear_shrink", "soft_threshold"]


def soft_threshold(v: Tensor, threshold: float | Tensor) -> Tensor:
    """The map of threshold * ||x||_1: sign(v) max(|v| - threshold, 0), elementwise."""
    return v.sign() * (v.abs() - threshold).clamp_min(0)


def hard_threshold(v: Tensor, lam: float) -> Tensor:
    """The map of lam * (number of entries that are not 0): v where v^2 > 2 lam, else 0."""
    return torch.where(v.square() > 2 * lam, v, 0.0)


def group_shrink(rows: Tensor, threshold: float | Tensor) -> Tensor:
    """The map of threshold * sum of the rows' lengths (group lasso): each row of (G, ...) is shortened by so much."""
    length = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    factor = (1 - threshold / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_min(0)
    return rows * factor.view(-1, *[1] * (rows.ndim - 1))


def nuclear_shrink(matrix: Tensor, threshold: float) -> Tensor:
    """The map of threshold * nuclear norm: singular values (..., m, n) lowered by the threshold, at least 0."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u * (s - threshold).clamp_min(0).unsqueeze(-2)) @ vh


def envelope(norms: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """The convex envelope of half the squared norm where at most k groups are not 0: half the k-support norm squared.

    Args:
        norms: lengths of the G groups, or magnitudes of entries, (G,), at least 0.
        k: groups allowed, in 1 ... G.
        weights: d of each group, above 0; 1 by default.

    Returns:
        1/2 min over 0 <= u <= 1, sum u <= k of sum_g d_g norms_g^2 / u_g, a scalar; differentiable, the minimum u being
        held (Danskin). Argyriou, Foygel, Srebro 2012 (arXiv 1204.5043); with weights Refael et al. 2022.
    """
    root = norms.detach() if weights is None else norms.detach() * weights.sqrt()
    share = _fill(root, torch.zeros_like(root), k)
    square = norms.square() if weights is None else weights * norms.square()
    return 0.5 * torch.where(share > 0, square / share.clamp_min(torch.finfo(share.dtype).tiny), 0.0).sum()


@torch.no_grad()
def envelope_shrinkage(norms: Tensor, k: int, lam: float, weights: Tensor | None = None) -> Tensor:
    """Factors in [0, 1) by which the map of lam * ``envelope`` shortens each group.

    Args:
        norms: lengths of the G groups, (G,), at least 0.
        k: groups that the envelope allows, in 1 ... G; more may remain where lam is small.
        lam: factor of the envelope, above 0.
        weights: d of each group, above 0; 1 by default.

    Returns:
        u / (u + lam d) of shape (G,), with u_g = clip(s sqrt(lam d_g) norms_g - lam d_g, 0, 1) and s such that
        sum u = k; u = 1 wherever a group is not 0 if there are no more than k of those.
    """
    cost = lam * (torch.ones_like(norms) if weights is None else weights.to(norms))
    share = _fill(cost.sqrt() * norms, cost, k)
    return share / (share + cost)


def _fill(slope: Tensor, offset: Tensor, k: int) -> Tensor:
    """u = clip(s slope - offset, 0, 1) with the s that makes sum u = k, or the least that makes all u = 1.

    The sum is piecewise linear and rising in s, with corners where an entry leaves 0 or arrives at 1: sorting the
    corners finds s exactly, without iterations and without waiting for the device.
    """
    if not 1 <= k <= len(slope):
        raise ValueError(f"the envelope needs k in 1 ... {len(slope)}, the number of groups; got {k}")
    wide = torch.float32 if slope.device.type == "mps" else torch.float64  # long sums of differences follow
    a, b = slope.to(wide), offset.to(wide)
    live = a > 0
    safe = torch.where(live, a, 1.0)
    corners = torch.cat([torch.where(live, b / safe, torch.inf), torch.where(live, (1 + b) / safe, torch.inf)])
    a, b = torch.where(live, a, 0.0), torch.where(live, b, 0.0)
    corners, order = corners.sort()
    rise = torch.cat([a, -a])[order].cumsum(0)  # slope of the sum right of each corner
    shift = torch.cat([-b, torch.where(live, 1 + b, 0.0)])[order].cumsum(0)
    finite = corners.isfinite()
    reached = torch.where(finite, corners, 0.0) * rise + shift  # the sum at each corner
    full = live.sum()
    # the last corner at which the sum is still below k: k lies on the line that starts there
    below = (finite & (reached < k - 1e-9)).sum() - 1
    s = (k - shift[below]) / rise[below]
    share = torch.where(full <= k, live.to(wide), (s * slope.to(wide) - offset.to(wide)).clamp(0, 1))
    return torch.where(live, share, 0.0).to(slope.dtype)
