"""Conservation laws imposed on what a model predicts: an update of its mean and covariance, and a layer of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core import implements
from ..parts.spectra import wide

__all__ = [
    "ConservationLayer",
    "conservation_update",
    "second_difference_operator",
    "smoothing_update",
    "trapezoid_operator",
]


# ---- rows of linear constraints
def trapezoid_operator(*grids: Tensor, times: int = 1) -> Tensor:
    """Rows that integrate a function given on a grid, by the trapezoidal rule.

    Args:
        grids: the coordinates (n_i,) of each axis, rising, not necessarily evenly; an axis needs two of them.
        times: number of such grids one after the other in a prediction, each with an integral of its own.

    Returns:
        (times, times * n) with n the product of the n_i, rows of values in the order of ``flatten()``. Times the values
        it is exact where the function is linear between neighbours.
    """
    if not grids:
        raise ValueError("trapezoid_operator needs the coordinates of at least one axis")
    row = grids[0].new_ones(())
    for x in grids:
        if x.ndim != 1 or len(x) < 2:
            raise ValueError(f"trapezoid_operator: an axis is a vector of at least 2 points, got {tuple(x.shape)}")
        gaps = x.diff() / 2
        weights = torch.cat([gaps, gaps.new_zeros(1)]) + torch.cat([gaps.new_zeros(1), gaps])
        row = torch.outer(row.flatten(), weights).flatten()
    return torch.kron(torch.eye(times, dtype=row.dtype, device=row.device), row)


def second_difference_operator(
    *sizes: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Rows u_{i-1} - 2 u_i + u_{i+1} of every axis of a grid of the given sizes, one axis after the other.

    Returns:
        (sum over axes of (n_i - 2) * n / n_i, n) with n the product of the sizes, each at least 3.
    """
    if not sizes or min(sizes) < 3:
        raise ValueError(f"second_difference_operator: an axis needs at least 3 points, got {sizes}")
    eyes = [torch.eye(n, dtype=dtype, device=device) for n in sizes]
    rows = []
    for axis, eye in enumerate(eyes):
        operator = eye.diff(n=2, dim=0)
        for before in reversed(eyes[:axis]):
            operator = torch.kron(before, operator)
        for after in eyes[axis + 1 :]:
            operator = torch.kron(operator, after)
        rows.append(operator)
    return torch.cat(rows)


# ---- updates
@implements("probconserv")
def conservation_update(
    mean: Tensor, cov: Tensor, G: Tensor, b: Tensor | float, sigma: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Conservation update: the prediction that keeps linear laws, moved where the model is unsure.

    Computes:
        Mean and covariance of u ~ N(mean, cov) given that G u = b, up to noise of sd sigma: with sigma 0 the point
        nearest to the mean, in the metric of the inverse covariance, among those that satisfy the law. With quadrature
        weights as rows (``trapezoid_operator``) and the known mass as b it conserves mass; ``smoothing_update`` is the
        same with second differences. ``ConservationLayer`` puts it behind a model.

    Formula:
        S = G \Sigma G^{\top} + \sigma^2 I
        \tilde\mu = \mu - \Sigma G^{\top} S^{-1} (G \mu - b)
        \tilde\Sigma = \Sigma - \Sigma G^{\top} S^{-1} G \Sigma

    Helps:
        Predictions on a grid whose total is known (mass, energy, probability), with a covariance that is large where
        the solution is uncertain, at a shock: the correction then goes there. At a moving front this left about half
        the squared error that equal variances left, and the front lay nearer.

    Avoid:
        As a promise of a smaller squared error. The error in the metric of the inverse covariance never rises; the
        plain one does not where the covariance is a multiple of I, but may otherwise, where the covariance is wrong
        about the errors. Rows that repeat each other where the model is unsure, with sigma 0: G Sigma G^T is singular
        and the result NaN; short of that (several totals of one very smooth covariance) the law holds less exactly.
        Then leave a row out, give a sigma, or compute in float64. Moving the layer to half precision with its model
        rounds the rows, which makes another law: keep the layer in float32.

    Defaults:
        sigma 0: the law holds to rounding (float32, well-conditioned G Sigma G^T: 1e-6 of the terms in its sum).

    Cost:
        m^2 n for m rows and n diagonal variances, m n^2 for a full covariance, and a Cholesky factor of m x m.

    Reference:
        Hansen, Maddix, Alizadeh, Gupta, Mahoney 2023, Learning Physical Models that Can Respect Conservation Laws,
        arXiv 2302.11002. Conditioning on one set of rows and then on another is conditioning on both at once, so rows
        may be stacked, and those with sigma 0 stay satisfied whatever follows them; nothing needs to be imposed again.

    Args:
        mean: (..., n).
        cov: variances, with as many dimensions as the mean (..., n), or a covariance with one more (..., n, n).
        G: rows (..., m, n), linearly independent where sigma is 0.
        b: what G u is, (..., m) or a number.
        sigma: sd of the noise in G u = b, a number or one per row (..., m); at least 0.

    Returns:
        the new mean (..., n), and its variances, at least 0, or its covariance, whichever was given; in float32 at
        least, as a law would not survive being rounded to half precision.

    Raises:
        ValueError: for shapes that do not fit, or a negative sigma.
    """
    diagonal = _check(mean, cov, G)
    if isinstance(sigma, int | float) and not sigma >= 0:
        raise ValueError(f"conservation_update: sigma is a standard deviation, at least 0; got {sigma}")
    dtype = torch.promote_types(torch.promote_types(mean.dtype, cov.dtype), torch.float32)
    mean, cov, G = mean.to(dtype), cov.to(dtype), G.to(mean.device, dtype)
    m = G.shape[-2]
    b, noise = _per_row("b", b, mean, m), _per_row("sigma", sigma, mean, m).square()
    with torch.autocast(mean.device.type, enabled=False):
        spread = G * cov.unsqueeze(-2) if diagonal else G @ cov  # G Sigma
        factor, failed = torch.linalg.cholesky_ex(spread @ G.mT + torch.diag_embed(noise))
        factor = factor.masked_fill((failed != 0)[..., None, None], torch.nan)  # without waiting for the device
        whitened = torch.linalg.solve_triangular(factor, spread, upper=False)
        excess = (G @ mean.unsqueeze(-1)).squeeze(-1) - b
        excess = torch.linalg.solve_triangular(factor, excess.unsqueeze(-1), upper=False)
        mean = mean - (whitened.mT @ excess).squeeze(-1)
        cov = cov - (whitened.square().sum(-2) if diagonal else whitened.mT @ whitened)
    cov = cov.clamp_min(0) if diagonal else cov  # rounding leaves less where nothing is left
    return mean, cov


def smoothing_update(mean: Tensor, cov: Tensor, correlation: float = 0.5) -> tuple[Tensor, Tensor]:
    """Draw the prediction to a smooth one: ``conservation_update`` with second differences that are 0 up to noise.

    The noise of a row is the sd of a second difference of values with the given variances, of which neighbours
    correlate by ``correlation`` and those beyond by its square: rough places stay rough where the model is unsure.

    Args:
        mean: (..., n) along one axis of evenly spaced points, at least 3.
        cov: as in ``conservation_update``.
        correlation: in [0, 1); the higher, the smoother.

    Returns:
        the new mean and the full covariance (..., n, n): neighbours have become dependent.

    Raises:
        ValueError: for a correlation out of range, fewer than 3 points, or shapes that do not fit.
    """
    if not 0 <= correlation < 1:
        raise ValueError(f"smoothing_update: the correlation of neighbours is in [0, 1), got {correlation}")
    n, cov = mean.shape[-1], wide(cov)
    G = second_difference_operator(n, dtype=mean.dtype, device=mean.device)
    diagonal = _check(mean, cov, G)
    variances = cov if diagonal else cov.diagonal(dim1=-2, dim2=-1)
    tiny, eps = torch.finfo(cov.dtype).tiny, torch.finfo(cov.dtype).eps
    sd = variances.clamp_min(tiny).sqrt()  # a point that is known has variance 0, or by rounding less
    left, middle, right = sd[..., :-2], -2 * sd[..., 1:-1], sd[..., 2:]
    variance = left.square() + middle.square() + right.square()
    variance = variance + 2 * correlation * middle * (left + right) + 2 * correlation**2 * left * right
    full = torch.diag_embed(cov.expand_as(mean)) if diagonal else cov
    rounding = (n * eps * variances.detach().amax(-1, keepdim=True)).clamp_min(tiny)  # of the rows of known points
    return conservation_update(mean, full, G, 0.0, torch.maximum(variance, rounding).sqrt())


class ConservationLayer(nn.Module):
    """``conservation_update`` behind a model: what it returns satisfies G u = b.

    Takes a prediction (..., n), whose points then are equally uncertain, or a pair of mean and covariance (variances or
    full, as in ``conservation_update``), and returns the same. Differentiable, so a model may be trained through it.
    A grid of several axes is flattened before it: ``nn.Sequential(net, nn.Flatten(), ConservationLayer(...))``.

    Args:
        G: rows (m, n) of the laws, say ``trapezoid_operator(x)``; a buffer.
        b: their values (m,) or a number where all inputs share them; otherwise ``forward`` is given them.
        sigma: sd of the noise in G u = b.
        correlation: of neighbours, for a ``smoothing_update`` before the laws are imposed; None: no smoothing. For one
            axis only: where several are flattened, the end of one row is no neighbour of the start of the next.

    Example:
        >>> x = torch.linspace(0, 1, 50)
        >>> density = nn.Sequential(nn.Linear(3, 50), nn.Softplus(), ConservationLayer(trapezoid_operator(x), 1.0))
        >>> torch.trapezoid(density(torch.randn(8, 3)), x).sub(1).abs().max().item() < 1e-5
        True
    """

    G: Tensor
    b: Tensor | None

    def __init__(
        self,
        G: Tensor,
        b: Tensor | float | None = None,
        sigma: float = 0.0,
        correlation: float | None = None,
    ) -> None:
        super().__init__()
        if G.ndim != 2:
            raise ValueError(f"ConservationLayer: G holds rows (m, n), got {tuple(G.shape)}")
        G = G.detach().to(torch.promote_types(G.dtype, torch.float32))  # whole numbers are no buffer for b = 0.5
        self.register_buffer("G", G.clone())
        self.register_buffer("b", None if b is None else _per_row("b", b, G, len(G)).detach().clone())
        self.sigma, self.correlation = sigma, correlation

    def forward(
        self, prediction: Tensor | tuple[Tensor, Tensor], b: Tensor | float | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Impose the laws, with values ``b`` (..., m) where they are not the layer's own."""
        given = self.b if b is None else b
        if given is None:
            raise ValueError("ConservationLayer: what is conserved? give b to the layer, or to this call")
        pair = isinstance(prediction, tuple)
        mean, cov = prediction if isinstance(prediction, tuple) else (prediction, _equal(prediction))
        diagonal = cov.ndim == mean.ndim
        if self.correlation is not None:
            mean, cov = smoothing_update(mean, cov, self.correlation)
        mean, cov = conservation_update(mean, cov, self.G, given, self.sigma)
        if not pair:
            return mean
        return mean, cov.diagonal(dim1=-2, dim2=-1) if diagonal and cov.ndim > mean.ndim else cov

    def extra_repr(self) -> str:
        return f"rows={len(self.G)}, points={self.G.shape[1]}, sigma={self.sigma}, correlation={self.correlation}"


def _equal(mean: Tensor) -> Tensor:
    """Variances 1, as many dimensions as the mean, in one row for all."""
    return mean.new_ones(mean.shape[-1]).view([1] * (mean.ndim - 1) + [-1])


def _check(mean: Tensor, cov: Tensor, G: Tensor) -> bool:
    """Whether the covariance is diagonal; refuses what does not fit together."""
    n = mean.shape[-1]
    diagonal, batch = cov.ndim == mean.ndim, mean.shape[:-1]
    own = batch + ((n,) if diagonal else (n, n))
    points = 1 if diagonal else 2  # the last dimensions are to be n; those before may be 1, for all
    fits = len(cov.shape) == len(own) and cov.shape[-points:] == own[-points:]
    if not fits or any(a != b and 1 not in (a, b) for a, b in zip(cov.shape, own, strict=True)):
        raise ValueError(
            f"the covariance of a mean (..., n) is (..., n), its variances, or (..., n, n), with one dimension more; "
            f"got {tuple(cov.shape)} for {tuple(mean.shape)}"
        )
    if G.ndim < 2 or G.shape[-1] != n:
        raise ValueError(f"G holds rows (m, {n}) of a law on {n} points, got {tuple(G.shape)}")
    return diagonal


def _per_row(name: str, value: Tensor | float, like: Tensor, m: int) -> Tensor:
    """A number or (..., m) as (..., m)."""
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if value.ndim and value.shape[-1] != m:
        raise ValueError(f"{name} is a number or has one entry per row of G, (..., {m}); got {tuple(value.shape)}")
    return value.expand(*value.shape[:-1], m) if value.ndim else value.expand(m)
