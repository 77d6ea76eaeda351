"""Spectra of representations and weights: Gram matrices, entropies of eigenvalues, effective and stable rank.

Matrices are (..., N, D): N rows (samples) of D features. What is in half precision is computed in float32, autocast or
not. Of the two Gram matrices the smaller is taken: their non-zero eigenvalues are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def centred(x: Tensor) -> Tensor:
    """Rows minus their mean, in at least float32."""
    x = wide(x)
    return x - x.mean(-2, keepdim=True)


def covariance(x: Tensor, correction: int = 0) -> Tensor:
    """Covariance of the features over the rows, (..., D, D).

    Args:
        x: (..., N, D).
        correction: the sum over rows is divided by N - correction.
    """
    x = centred(x)
    with torch.autocast(x.device.type, enabled=False):
        return x.mT @ x / (x.shape[-2] - correction)


def smaller_gram(x: Tensor) -> Tensor:
    """X^T X or X X^T, whichever is smaller: (..., m, m) with m = min(N, D). Not centred, not scaled."""
    x = wide(x)
    with torch.autocast(x.device.type, enabled=False):
        return x.mT @ x if x.shape[-1] <= x.shape[-2] else x @ x.mT


def eigenvalues(x: Tensor) -> Tensor:
    """The min(N, D) largest eigenvalues of X^T X, ascending, at least 0; the rest are 0.

    Squared singular values of X by the smaller Gram matrix; those below about 1e-7 of the largest are noise in float32.
    The gradient is finite however many coincide.
    """
    gram = smaller_gram(x)
    rows = gram.shape[-1]
    with torch.no_grad():  # LAPACK may return NaN for a block of units that are almost dead; a shift below noise helps
        shift = torch.finfo(gram.dtype).eps * gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        eye = torch.eye(rows, dtype=gram.dtype, device=gram.device)
    return (torch.linalg.eigvalsh(gram + shift[..., None] * eye) - shift).clamp_min(0)


def shares(values: Tensor) -> Tensor:
    """Non-negative values divided by their sum over the last dimension; zeros where all are 0."""
    total = values.sum(-1, keepdim=True)
    return values / total.where(total > 0, 1)


def entropy(values: Tensor) -> Tensor:
    """Shannon entropy (nats) of the shares of non-negative values, over the last dimension.

    With eigenvalues of a Gram matrix: the von Neumann entropy of that matrix at trace 1. Its gradient is finite where
    values are 0.
    """
    p = shares(values)
    return -(p * p.clamp_min(1e-12).log()).sum(
        -1
    )  # clamped inside the logarithm: at p = 0 the slope of p log p is -inf


def renyi_entropy(values: Tensor, order: float = 2.0) -> Tensor:
    """Renyi entropy (nats) of the shares of non-negative values, over the last dimension.

    Args:
        values: (..., m).
        order: above 0; 1 is Shannon's, 2 minus the logarithm of the purity, infinity that of the largest share.

    Raises:
        ValueError: for an order of 0 or less.
    """
    if not order > 0:
        raise ValueError(f"renyi_entropy: order must be above 0, got {order:g}")
    if order == 1:
        return entropy(values)
    p = shares(values)
    if order == float("inf"):
        return -p.amax(-1).log()
    some = p > 1e-12  # below, p^order of an order under 1 is too steep
    return p.where(some, 1).pow(order).where(some, 0).sum(-1).log() / (1 - order)


def von_neumann_entropy(x: Tensor) -> Tensor:
    """Entropy (nats) of the eigenvalues of X^T X at trace 1: from 0 (rank 1) to log min(N, D) (isotropic)."""
    return entropy(eigenvalues(x))


def singular_values(x: Tensor) -> Tensor:
    """The min(N, D) singular values, descending; as precise as the dtype, where ``eigenvalues`` squares the error."""
    return torch.linalg.svdvals(wide(x))


def effective_rank(x: Tensor, power: int = 1) -> Tensor:
    """Exponential of the entropy of the shares of the singular values, 1 to min(N, D).

    Args:
        x: (..., N, D), not centred here.
        power: 1: singular values as they are (Roy, Vetterli 2007); 2: their squares, exp of ``von_neumann_entropy``.

    Raises:
        ValueError: for another power.
    """
    if power not in (1, 2):
        raise ValueError(f"effective_rank: power must be 1 or 2, got {power}")
    return (entropy(singular_values(x)) if power == 1 else von_neumann_entropy(x)).exp()


def nuclear_norm(x: Tensor) -> Tensor:
    """Sum of the singular values."""
    return singular_values(x).sum(-1)


def stable_rank(x: Tensor) -> Tensor:
    """Squared Frobenius norm over squared spectral norm, 1 to the rank; 0 of the zero matrix."""
    found = eigenvalues(x)
    largest = found[..., -1]
    return found.sum(-1) / largest.where(largest > 0, 1)
