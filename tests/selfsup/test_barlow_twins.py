"""Barlow Twins."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pairs import fitted, views
from torch import Tensor

from wellposed.selfsup.barlow_twins import barlow_twins, cross_correlation


def by_loops(z1: Tensor, z2: Tensor, redundancy: float) -> float:
    """Eqs. 1 and 2, one pair of units at a time; the pairs with a constant unit are uncorrelated."""
    d = z1.shape[1]
    total = 0.0
    for i in range(d):
        for j in range(d):
            a, b = z1[:, i] - z1[:, i].mean(), z2[:, j] - z2[:, j].mean()
            lengths = float(a.norm() * b.norm())
            c = float(a @ b) / lengths if lengths else 0.0
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    return total


@pytest.mark.parametrize("shape", [(12, 3), (5, 20)])  # by the D x D matrix, and by the two N x N ones
@pytest.mark.parametrize("redundancy", [0.0, 0.005, 1.0])
def test_value_by_explicit_loops(shape: tuple[int, int], redundancy: float) -> None:
    z1, z2 = views(*shape)
    found = barlow_twins(z1, z2, redundancy, eps=0.0)
    assert found.item() == pytest.approx(by_loops(z1, z2, redundancy), rel=1e-10)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_gradient(shape: tuple[int, int]) -> None:
    assert torch.autograd.gradcheck(partial(barlow_twins, redundancy=0.1), [z.requires_grad_() for z in views(*shape)])


def test_equal_white_views_cost_nothing() -> None:
    """C is then the identity; with variances of N - 1 in the denominator D / N^2 would be left."""
    z = torch.linalg.qr(views(64, 8)[0] - views(64, 8)[0].mean(0)).Q
    assert barlow_twins(z, z, eps=0.0).item() < 1e-25


def test_unrelated_views_cost_their_dimension() -> None:
    """E L = D (1 + 1/N) + redundancy D (D - 1) / N; the sum of D squares of sd about 2 / sqrt(N) errs by that."""
    z1, z2 = views(4096, 32)[0], views(4096, 32, seed=1)[0]
    expected = 32 * (1 + 1 / 4096) + 0.005 * 32 * 31 / 4096
    assert abs(barlow_twins(z1, z2).item() - expected) < 4 * 2 * (32 / 4096) ** 0.5


def test_scale_shift_and_order_of_units_do_not_matter() -> None:
    z1, z2 = views(12, 4)
    other = barlow_twins((3 * z1 + 7)[:, [2, 0, 3, 1]], (0.5 * z2 - 1)[:, [2, 0, 3, 1]], eps=0.0)
    torch.testing.assert_close(other, barlow_twins(z1, z2, eps=0.0), rtol=1e-10, atol=0)


def test_constant_units_have_finite_gradients() -> None:
    z1, z2 = views(12, 4)
    z1[:, 0] = 1.0
    z1.requires_grad_()
    loss = barlow_twins(z1, z2)
    assert torch.autograd.grad(loss, z1)[0].isfinite().all()
    assert cross_correlation(z1, z2)[0].abs().max() < 1e-12


def test_half_precision_is_computed_in_float32() -> None:
    z1, z2 = (z.bfloat16() for z in views(64, 4))
    with torch.autocast("cpu", torch.bfloat16):
        found = barlow_twins(z1, z2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), barlow_twins(z1.double(), z2.double()), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    losses = fitted(barlow_twins, kind)
    assert losses[-1] < 0.5 * losses[0]
