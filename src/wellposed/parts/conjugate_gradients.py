"""Conjugate gradients: a symmetric linear system for each sample, from products with its matrix alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Solution", "conjugate_gradients", "lengths", "spread"]


class Solution(NamedTuple):
    """What was found.

    Attributes:
        value: u, of b's shape.
        residual: ||M u - b|| / ||b||, as the recursion has it, (B,); 0 where b is 0.
    """

    value: Tensor
    residual: Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    damping: float | Tensor = 0.0,
    tol: float = 1e-6,
    iterations: int = 100,
) -> Solution:
    """Solve (M + damping) u = b for every sample at once, from u = 0; samples that are done stay as they are.

    Args:
        product: v to M v, both (B, ...), each sample by itself, M symmetric and positive semidefinite.
        b: (B, ...).
        damping: at least 0; a number, or one for each sample (B,).
        tol: on the relative residual.
        iterations: at most so many products.

    Returns:
        u and its residual, without a graph; whether that is small enough is the caller's to say.
    """
    with torch.no_grad():
        b = b.detach()
        extra = spread(torch.as_tensor(damping, dtype=b.dtype, device=b.device).expand(len(b)), b)
        u, r = torch.zeros_like(b), b
        p, rr = r, _dot(r, r)
        start, tiny = rr, torch.finfo(b.dtype).tiny
        for _ in range(iterations):
            going = rr > tol**2 * start
            if not bool(going.any()):
                break
            image = product(p) + extra * p
            step = torch.where(going, rr / _dot(p, image).clamp_min(tiny), 0.0)
            u, r = u + spread(step, p) * p, r - spread(step, p) * image
            new = torch.where(going, _dot(r, r), rr)
            p = torch.where(spread(going, p), r + spread(new / rr.clamp_min(tiny), p) * p, p)
            rr = new
        return Solution(u, (rr / start.clamp_min(tiny)).sqrt())


def lengths(x: Tensor) -> Tensor:
    """The Euclidean length of each sample: (B, ...) to (B,)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def spread(values: Tensor, like: Tensor) -> Tensor:
    """One value a sample (B,), shaped to multiply ``like`` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
