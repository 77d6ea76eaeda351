"""Neighbours against loops, and the dimension of clouds whose dimension is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wellposed.parts.neighbours import local_dimension, nearest, squared_distances


def cloud(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_squared_distances() -> None:
    x, y = cloud(6, 3), cloud(4, 3, 1)
    by_differences = (x[:, None] - y).square().sum(-1)
    torch.testing.assert_close(squared_distances(x, y), by_differences, rtol=1e-12, atol=0)
    same = squared_distances(x.float() + 1e4)  # an offset costs the digits of the input, no more
    torch.testing.assert_close(same, (x[:, None] - x).square().sum(-1).float(), rtol=1e-2, atol=0)
    assert (same.diagonal() == 0).all()
    assert torch.autograd.gradcheck(squared_distances, (x.requires_grad_(), y.requires_grad_()))


def test_nearest_by_sorting() -> None:
    x, y = cloud(7, 3), cloud(5, 3, 1)
    expected, order = torch.cdist(x, y).sort(1)
    found, index = nearest(x, 4, y)
    torch.testing.assert_close(found, expected[:, :4], rtol=1e-10, atol=0)
    assert torch.equal(index, order[:, :4])
    expected, order = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sort(1)
    for found, index in (nearest(x, 6), nearest(x, 6, x.clone(), same=True)):
        torch.testing.assert_close(found, expected[:, 1:], rtol=1e-10, atol=0)
        assert torch.equal(index, order[:, 1:])
    with pytest.raises(ValueError, match="k must be 1 to 6, the number of neighbours there are, got 7"):
        nearest(x, 7)


def test_gradient_of_distances_at_duplicates_is_zero() -> None:
    x = cloud(3, 2).repeat(2, 1).requires_grad_()
    found, _ = nearest(x, 1)
    assert found.max() < 1e-7
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(slope, torch.zeros_like(x))


def test_gradient() -> None:
    x = cloud(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nearest(x, 3)[0], x)
    for method in ("mom", "mle"):
        assert torch.autograd.gradcheck(lambda x, m=method: local_dimension(nearest(x, 4)[0], m), x)


@pytest.mark.parametrize("method", ["mom", "mle"])
@pytest.mark.parametrize("dimension", [2.0, 7.0])
def test_dimension_of_distances_that_grow_like_a_power(method: str, dimension: float) -> None:
    """P(d < r) = r^n is the definition of local dimension n; the mean of 2000 logs errs by 1 / sqrt(2000 * 49)."""
    u = torch.rand(2000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances = u.pow(1 / dimension).sort(-1).values
    mean = local_dimension(distances, method).log().mean().exp()  # type: ignore[arg-type]
    bias = 1 / 49  # of order 1 / k: the logarithm is concave
    assert abs(math.log(float(mean) / dimension)) < bias + 4 / math.sqrt(2000 * 49)


def test_formulas_by_hand() -> None:
    d = torch.tensor([1.0, 2.0, 4.0])
    assert local_dimension(d, "mom").item() == pytest.approx(1.5 / (4 - 1.5))
    assert local_dimension(d, "mle").item() == pytest.approx(2 / (math.log(4) + math.log(2)))
    assert local_dimension(torch.ones(3)).isfinite()
    with pytest.raises(ValueError, match="at least 2 neighbours"):
        local_dimension(d[:1])
    with pytest.raises(ValueError, match="method must be 'mom' or 'mle', got 'ml'"):
        local_dimension(d, "ml")  # type: ignore[arg-type]
