"""Kernels between rows, and what they tell: how far two samples differ (MMD), how far two variables depend (HSIC)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .neighbours import squared_distances
from .spectra import wide

Name = Literal["gaussian", "laplace", "imq", "energy", "linear"]
Kernel = Name | Callable[[Tensor, Tensor], Tensor]
Scale = float | Tensor | Sequence[float]


def median_bandwidth(x: Tensor) -> Tensor:
    """Median distance between two different rows, 1 where that is 0 (half of the pairs agree) or N is 1; held constant.

    Args:
        x: (N, D), at some 16 N^2 bytes; two samples joined, where one bandwidth is to serve both.

    Returns:
        a scalar on x's device, without gradient.
    """
    with torch.no_grad():
        square = squared_distances(x)
        if len(x) == 1:
            return square.new_ones(())
        upper = torch.triu_indices(len(x), len(x), 1, device=x.device)
        found = square[upper[0], upper[1]].median().sqrt()
        return found.where(found != 0, 1)


def kernel_matrix(
    x: Tensor, y: Tensor | None = None, kernel: Kernel = "gaussian", scale: Scale | None = None
) -> Tensor:
    """k(x_i, y_j) of all pairs.

    Args:
        x: (N, D).
        y: (M, D); None: x itself.
        kernel: by the distance r and scale s of two rows
            "gaussian": exp(-r^2 / 2 s^2);
            "laplace": exp(-r / s);
            "imq" (inverse multiquadric): s^2 / (s^2 + r^2);
            "energy": -r, whose MMD is the energy distance; positive definite only among weights that sum to 0;
            "linear": <x, y>;
            or a function (N, D), (M, D) -> (N, M).
        scale: s above 0; several: the sum of their kernels; None: the median distance of the rows of x, and of y.
            "energy", "linear" and functions have none.

    Returns:
        shape (N, M), in at least float32 (a function's as it comes). Differentiable; the gradient of "laplace" and
        "energy" is 0 at pairs of equal rows, where they have none.

    Raises:
        ValueError: for an unknown name, or a scale where there is none.
    """
    if callable(kernel):
        _refuse(scale, "a function")
        return kernel(x, x if y is None else y)
    if kernel not in get_args(Name):
        raise ValueError(f"kernel_matrix: kernel must be a function or one of {', '.join(get_args(Name))}: {kernel!r}")
    if kernel == "linear":
        _refuse(scale, kernel)
        x, y = wide(x), wide(x if y is None else y)
        with torch.autocast(x.device.type, enabled=False):
            return x @ y.T
    square = squared_distances(x, y)
    if kernel == "energy":
        _refuse(scale, kernel)
        return -_root(square)
    if scale is None:
        scale = median_bandwidth(x if y is None else torch.cat([x, y]))
    if isinstance(scale, Sequence) or (isinstance(scale, Tensor) and scale.ndim):
        if not len(scale):
            raise ValueError("kernel_matrix: scale is an empty list")
        return functools.reduce(torch.add, [_at(square, kernel, s) for s in scale])
    return _at(square, kernel, scale)


def mmd(x: Tensor, y: Tensor, kernel: Kernel = "gaussian", scale: Scale | None = None, unbiased: bool = True) -> Tensor:
    """Squared maximum mean discrepancy of two samples: E k(x, x') + E k(y, y') - 2 E k(x, y).

    Args:
        x: (N, D).
        y: (M, D).
        kernel, scale: as of ``kernel_matrix``; without a scale it is the median distance of x and y together.
        unbiased: without the pairs of a row with itself, so that the expectation is the distributions' own value, and
            the estimate may be negative; or with them, at least 0 for a positive definite kernel.

    Returns:
        a scalar; Gretton et al. 2012 (A Kernel Two-Sample Test), Eqs. 3 and 5.

    Raises:
        ValueError: if the samples differ in dimension or have fewer than 2 rows.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"mmd: needs samples (N, D) and (M, D) of at least 2 rows, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    n, m = len(x), len(y)
    both = kernel_matrix(torch.cat([x, y]), None, kernel, scale)
    own, other, cross = both[:n, :n], both[n:, n:], both[:n, n:]
    if not unbiased:
        return own.mean() + other.mean() - 2 * cross.mean()
    return _between(own) / (n * (n - 1)) + _between(other) / (m * (m - 1)) - 2 * cross.mean()


def hsic(k: Tensor, l: Tensor, unbiased: bool = False) -> Tensor:  # noqa: E741
    """Hilbert-Schmidt independence criterion of two variables, from their kernel matrices over the same rows.

    With characteristic kernels ("gaussian", "laplace", "imq") its expectation is 0 for independent variables only.
    ``hsic(kernel_matrix(x), kernel_matrix(y))``, say.

    Args:
        k, l: symmetric, (N, N).
        unbiased: tr(K H L H) / (N - 1)^2, at least 0 (Gretton et al. 2005, Definition 2), or the unbiased estimate,
            which may be negative (Song et al. 2012, Eq. 5).

    Returns:
        a scalar.

    Raises:
        ValueError: for matrices of different shape, or fewer rows than 2 (unbiased: 4).
    """
    n, least = len(k), 4 if unbiased else 2
    if k.shape != (n, n) or l.shape != (n, n) or n < least:
        raise ValueError(
            f"hsic: needs two (N, N) matrices with N at least {least}, got {tuple(k.shape)} and {tuple(l.shape)}"
        )
    if not unbiased:
        centred = k - k.mean(0, keepdim=True)
        centred = centred - centred.mean(1, keepdim=True)
        return (centred * l).sum() / (n - 1) ** 2
    k, l = k - torch.diag(k.diagonal()), l - torch.diag(l.diagonal())  # noqa: E741
    ways = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) * l.sum(0)).sum()
    return ((k * l).sum() + ways) / (n * (n - 3))


def _at(square: Tensor, kernel: Name, scale: float | Tensor) -> Tensor:
    """A kernel of one scale at squared distances."""
    if not isinstance(scale, Tensor) and not scale > 0:  # a tensor is not looked at: that would wait for the device
        raise ValueError(f"kernel_matrix: scale must be above 0, got {scale:g}")
    if kernel == "gaussian":
        return (square / (-2 * scale**2)).exp()
    if kernel == "laplace":
        return (-_root(square) / scale).exp()
    return scale**2 / (scale**2 + square)


def _root(square: Tensor) -> Tensor:
    """Square root with slope 0 in place of infinity at 0."""
    tiny = torch.finfo(square.dtype).tiny
    return square.clamp_min(tiny).sqrt().where(square > 0, 0)


def _between(matrix: Tensor) -> Tensor:
    """Sum over the pairs of different rows."""
    return matrix.sum() - matrix.diagonal().sum()


def _refuse(scale: Scale | None, kernel: str) -> None:
    if scale is not None:
        raise ValueError(f"kernel_matrix: {kernel} has no scale")
