"""Whitening for self-supervision: views agree after every batch of them has been made white."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.citing import implements
from ..core.parallel import gather
from ..parts.spectra import centred, covariance, wide

__all__ = ["w_mse", "whiten"]


def whiten(x: Tensor, method: Literal["cholesky", "zca"] = "cholesky", eps: float = 1e-4) -> Tensor:
    """Rows with mean 0 and covariance I, by a linear map made from the rows themselves.

    Args:
        x: (..., N, D), N above D.
        method: "cholesky": the inverse of the lower triangular factor of the covariance (N - 1 in the denominator).
            "zca": its inverse symmetric root, which moves the rows least; no gradient where eigenvalues coincide.
        eps: shrinks the covariance S to (1 - eps) S + eps tr(S) / D I, so that scale does not matter.

    Returns:
        same shape, in at least float32; NaN where the covariance is singular in spite of eps, as that of equal rows is.

    Raises:
        ValueError: for another method, or no more rows than columns.
    """
    rows, width = x.shape[-2:]
    if rows <= width:
        raise ValueError(f"whitening {width} units needs more than {width} rows, got {rows}")
    if method not in ("cholesky", "zca"):
        raise ValueError(f"whiten: method must be 'cholesky' or 'zca', got {method!r}")
    x = centred(x)
    spread = covariance(x, correction=1)
    eye = torch.eye(width, dtype=x.dtype, device=x.device)
    size = spread.diagonal(dim1=-2, dim2=-1).mean(-1)
    shrunk = (1 - eps) * spread + eps * size[..., None, None] * eye
    with torch.autocast(x.device.type, enabled=False):
        if method == "zca":
            values, vectors = torch.linalg.eigh(shrunk)
            return x @ (vectors * values[..., None, :].rsqrt()) @ vectors.mT
        factor, failed = torch.linalg.cholesky_ex(shrunk)  # without a look at the device, which waits for it
        factor = factor.masked_fill((failed != 0)[..., None, None], torch.nan)
        return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


@implements("w-mse")
def w_mse(
    z1: Tensor,
    z2: Tensor,
    slice_size: int | None = None,
    repeats: int = 1,
    eps: float = 1e-4,
    joint: bool = False,
    normalise: bool = True,
) -> Tensor:
    r"""W-MSE: whitened embeddings of two views agree; whitening alone keeps them from collapsing.

    A criterion of ``TwoViews``: ``TwoViews(partial(w_mse, repeats=4))``.

    Computes:
        Cuts the batch at random into slices, whitens each (one view at a time, or both together), and takes the mean
        squared distance between the two views' rows at length 1, 2 - 2 cos. Under data parallelism over all ranks'
        samples.

    Formula:
        \ell = \frac{1}{N} \sum_i \left\lVert w^A_i / \lVert w^A_i \rVert - w^B_i / \lVert w^B_i \rVert \right\rVert^2
        w = L^{-1} (z - \mu), \quad L L^\top = \Sigma

    Helps:
        Representations without labels, negative pairs, a predictor or a teacher. On digits agreement alone collapses:
        the features' linear probe with 50 labels was 48 points above its, and 11 above that of the untrained encoder.

    Avoid:
        Slices not much larger than the embedding: at N = D + 1 anything looks white and the loss is mostly noise; take
        2 D at least. Wide embeddings, therefore.

    Defaults:
        Slices of 2 D rows, one random division (``repeats`` 4 in the paper's larger runs), D = 64 for small images.

    Cost:
        One pass; N D^2 products and a Cholesky factor of D^3 / 3 a slice.

    Reference:
        Ermolov, Siarohin, Sangineto, Sebe 2020, Whitening for Self-Supervised Representation Learning, arXiv
        2007.06346, Eqs. 3-6. The paper writes one whitening for all views, the authors' code has one for each:
        the default here; ``joint`` is the paper's. Only joint whitening makes the loss invariant to every invertible
        map of the embedding. The shrinkage is relative to the mean variance here, absolute there.

    Args:
        z1, z2: embeddings of the two views, (N, D).
        slice_size: rows whitened together, above D; default 2 D. A batch that is no larger is one slice; up to
            N / slice_size rows that do not fill a slice are left out.
        repeats: random divisions that are averaged.
        eps: shrinkage of the covariance.
        joint: whether both views are whitened together.
        normalise: whether rows are brought to length 1 before they are compared.

    Returns:
        a scalar in at least float32, in [0, 4] if normalised; without, the mean square per unit.

    Raises:
        ValueError: if a slice has no more rows than the embedding has units.
    """
    z = torch.stack([gather(wide(z1)), gather(wide(z2))])
    rows, width = z.shape[1:]
    slices = max(1, rows // (slice_size or 2 * width))
    total = z.new_zeros(())
    for i in range(repeats):  # fixed draws: the order of the batch is random already, and resuming needs no state
        order = torch.randperm(rows, generator=torch.Generator(z.device).manual_seed(i), device=z.device)
        cut = z[:, order[: rows // slices * slices]].reshape(2, slices, -1, width)
        both = torch.cat([cut[0], cut[1]], 1) if joint else cut
        a, b = whiten(both, eps=eps).chunk(2, 1) if joint else whiten(both, eps=eps)
        if normalise:
            total = total + (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1).mean()
        else:
            total = total + (a - b).square().mean()
    return total / repeats
