"""Distances of samples from data."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import sqrtm

from wellposed.papers.samples import frechet_distance, principal


def test_frechet_distance_by_the_matrix_root() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=g, dtype=torch.float64)
    y = torch.randn(60, 4, generator=g, dtype=torch.float64) @ torch.randn(4, 4, generator=g, dtype=torch.float64) + 1
    one, two = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + float((one + two - 2 * sqrtm(one @ two).real).trace())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) < 1e-12
    assert frechet_distance(x, x + 3) == pytest.approx(36, rel=1e-12)  # 4 coordinates moved by 3


def test_principal_directions() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=g) * torch.tensor([5.0, 0.1, 1.0]) + 7
    mean, found = principal(x, 2)
    assert found.shape == (3, 2)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(found.abs().argmax(0), torch.tensor([0, 2]))
    torch.testing.assert_close(found.T @ found, torch.eye(2), atol=1e-5, rtol=0)
