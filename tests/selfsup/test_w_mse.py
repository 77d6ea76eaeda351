"""Whitening of embeddings."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from pairs import fitted, views
from torch import Tensor

from wellposed.selfsup.w_mse import w_mse, whiten


def by_numpy(z1: Tensor, z2: Tensor, joint: bool) -> float:
    """One slice: the inverse of the Cholesky factor of numpy's covariance, and one cosine at a time."""
    both = [z1.numpy(), z2.numpy()]
    whole = np.concatenate(both)
    white = []
    for z in both:
        of = whole if joint else z
        factor = np.linalg.inv(np.linalg.cholesky(np.cov(of.T)))
        white.append((z - of.mean(0)) @ factor.T)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*white, strict=True)]
    return float(np.mean([2 - 2 * c for c in cosines]))


@pytest.mark.parametrize("joint", [False, True])
def test_value_against_numpy(joint: bool) -> None:
    z1, z2 = views(12, 4)
    expected = by_numpy(z1, z2, joint)
    assert w_mse(z1, z2, slice_size=12, eps=0.0, joint=joint).item() == pytest.approx(expected, rel=1e-10)


def test_slices_and_repeats_are_averaged() -> None:
    z1, z2 = views(25, 4)
    total = 0.0
    for i in range(3):
        order = torch.randperm(25, generator=torch.Generator().manual_seed(i))
        for part in (order[:8], order[8:16], order[16:24]):  # one row is left out
            total += by_numpy(z1[part], z2[part], joint=False) / 9
    assert w_mse(z1, z2, repeats=3, eps=0.0).item() == pytest.approx(total, rel=1e-10)  # slices of 2 D by default


@pytest.mark.parametrize("method", ["cholesky", "zca"])
def test_whitened_covariance_is_the_identity(method: str) -> None:
    white = whiten(100 + 7 * views(3 * 40, 5)[0].reshape(3, 40, 5), method, eps=0.0)  # type: ignore[arg-type]
    for slice in white:
        np.testing.assert_allclose(np.cov(slice.T), np.eye(5), atol=1e-12)
        np.testing.assert_allclose(slice.mean(0), 0, atol=1e-12)


@pytest.mark.parametrize("joint", [False, True])
def test_gradient(joint: bool) -> None:
    loss = partial(w_mse, joint=joint, repeats=2)
    assert torch.autograd.gradcheck(loss, [z.requires_grad_() for z in views(9, 2)])
    assert torch.autograd.gradcheck(partial(loss, normalise=False), [z.requires_grad_() for z in views(9, 2)])
    assert torch.autograd.gradcheck(partial(whiten, method="zca"), views(9, 2)[0].requires_grad_())


def test_invariance() -> None:
    """Joint whitening undoes every invertible map, whitening by view only lower triangular ones of positive diagonal.

    (Lower triangular T makes T L the factor of T S T'.) A full map rotates what the two views' factors see apart.
    """
    z1, z2 = views(12, 4)
    full = views(4, 4, seed=5)[0]
    triangular = full.tril(-1) + torch.eye(4)
    shift = torch.arange(4)
    for joint, map, same in ((True, full, True), (False, triangular, True), (False, full, False)):
        loss = partial(w_mse, eps=0.0, joint=joint)
        gap = abs(loss(z1 @ map.T + shift, z2 @ map.T + shift) - loss(z1, z2)).item()
        assert gap < 1e-10 if same else gap > 1e-4


def test_scale_does_not_matter_despite_the_shrinkage() -> None:
    z1, z2 = views(12, 4)
    torch.testing.assert_close(w_mse(1e-6 * z1, 1e-6 * z2, eps=0.1), w_mse(z1, z2, eps=0.1), rtol=1e-10, atol=0)


def test_refused() -> None:
    z1, z2 = views(4, 4)
    with pytest.raises(ValueError, match="whitening 4 units needs more than 4 rows, got 4"):
        w_mse(z1, z2)
    with pytest.raises(ValueError, match="method must be 'cholesky' or 'zca', got 'pca'"):
        whiten(views(9, 2)[0], "pca")  # type: ignore[arg-type]
    assert w_mse(torch.ones(9, 2), torch.ones(9, 2)).isnan()  # equal rows: the recipe then says which term is NaN


def test_dead_units_are_no_obstacle() -> None:
    z1, z2 = (z.float() for z in views(12, 4))
    z1[:, 0] = z2[:, 0] = 0.0
    z1.requires_grad_()
    loss = w_mse(z1, z2)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, z1)[0].isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    z1, z2 = (z.bfloat16() for z in views(16, 4))
    with torch.autocast("cpu", torch.bfloat16):
        found = w_mse(z1, z2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), w_mse(z1.double(), z2.double()), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    losses = fitted(w_mse, kind)
    assert losses[-1] < 0.5 * losses[0]
