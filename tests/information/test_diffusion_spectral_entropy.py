"""Diffusion spectral entropy against its definition, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wellposed.information.diffusion_spectral_entropy import (
    diffusion_spectral_entropy,
    diffusion_spectral_information,
    diffusion_spectrum,
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def walk(x: Tensor, sigma: float, anisotropy: float) -> np.ndarray:
    """The matrix of transitions, entry by entry."""
    n = len(x)
    k = np.array(
        [[math.exp(-float((x[i] - x[j]).square().sum()) / (2 * sigma**2)) for j in range(n)] for i in range(n)]
    )
    d = k.sum(1) ** anisotropy
    k = k / np.outer(d, d)
    return k / k.sum(1, keepdims=True)


@pytest.mark.parametrize("anisotropy", [0.0, 0.5, 1.0])
def test_the_spectrum_is_that_of_the_walk(anisotropy: float) -> None:
    x = rand(9, 3)
    expected = np.sort(np.linalg.eigvals(walk(x, 0.8, anisotropy)).real)
    np.testing.assert_allclose(diffusion_spectrum(x, 0.8, anisotropy), expected, atol=1e-12)
    assert expected[-1] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("drop_top", [False, True])
def test_entropy_of_the_powers(drop_top: bool) -> None:
    x, t = rand(9, 3), 2.5
    values = np.sort(np.abs(np.linalg.eigvals(walk(x, 0.8, 0.0)).real))[: 8 if drop_top else 9] ** t
    p = values / values.sum()
    expected = -(p * np.log2(p)).sum()
    assert float(diffusion_spectral_entropy(x, 0.8, t, drop_top=drop_top)) == pytest.approx(expected, rel=1e-9)


def test_the_authors_normalisation_is_the_plain_walk() -> None:
    """D^-1/2 K D^-1/2 has the eigenvalues of D^-1 K, not those of an anisotropic walk."""
    x = rand(9, 3)
    k = torch.exp(-torch.cdist(x, x).square() / 2)
    d = k.sum(1).rsqrt()
    theirs = torch.linalg.eigvalsh(d[:, None] * k * d)
    torch.testing.assert_close(diffusion_spectrum(x, 1.0), theirs, rtol=0, atol=1e-12)
    assert (diffusion_spectrum(x, 1.0, 0.5) - theirs).abs().max() > 1e-3


def test_limits() -> None:
    """One point: 0 bits. Points that do not see each other: log2 of their number."""
    same, apart = torch.ones(8, 3), 1000 * torch.arange(8.0)[:, None]
    for drop, alone in ((False, 3.0), (True, math.log2(7))):
        assert float(diffusion_spectral_entropy(same, drop_top=drop)) == 0
        assert float(diffusion_spectral_entropy(apart, drop_top=drop)) == pytest.approx(alone, abs=1e-12)


def test_far_clusters_count_as_one_direction_each() -> None:
    x = 1000 * (torch.arange(12) % 4)[:, None].double() + 1e-6 * rand(12, 1)
    assert float(diffusion_spectral_entropy(x, 1.0)) == pytest.approx(2, abs=1e-6)
    assert float(diffusion_spectral_entropy(x, 1.0, drop_top=True)) == pytest.approx(math.log2(3), abs=1e-6)


def test_gradient_and_scale() -> None:
    x = rand(6, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: diffusion_spectral_entropy(v, 0.8, 2.0, 0.5), x)
    median = [diffusion_spectral_entropy(factor * x, None) for factor in (1.0, 7.0)]
    torch.testing.assert_close(median[0], median[1])
    images = x.detach().view(6, 1, 2, 1).bfloat16()
    assert diffusion_spectral_entropy(images).isfinite()


def test_information_of_labels() -> None:
    """Clusters far apart: their labels tell which, random ones nothing."""
    y = torch.arange(60) % 3
    x = 50 * y[:, None].double() + rand(60, 2)
    told = diffusion_spectral_information(x, y, 1.0, 2.0)
    random = diffusion_spectral_information(
        x, y[torch.randperm(60, generator=torch.Generator().manual_seed(0))], 1.0, 2.0
    )
    assert told > 1
    assert abs(float(random)) < 0.3 * float(told)
    torch.testing.assert_close(
        diffusion_spectral_information(x, y, None), diffusion_spectral_information(3 * x, y, None)
    )


def test_information_by_hand() -> None:
    """With as many draws as there are points the subset of a single class is all points: 0."""
    x, y = rand(7, 2), torch.zeros(7)
    assert float(diffusion_spectral_information(x, y, 1.0)) == pytest.approx(0, abs=1e-12)
    alone = torch.tensor([0, 0, 0, 1])
    g = torch.Generator().manual_seed(3)
    subset = torch.randperm(4, generator=g)[:3]
    bits = [float(diffusion_spectral_entropy(x[:4][index], 1.0)) for index in (subset, torch.tensor([0, 1, 2]))]
    found = diffusion_spectral_information(x[:4], alone, 1.0, draws=1, seed=3)
    assert float(found) == pytest.approx(0.75 * (bits[0] - bits[1]), rel=1e-9)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"at least 2 points and an anisotropy in \[0, 1\], got 1 and 0"):
        diffusion_spectrum(rand(1, 2))
    with pytest.raises(ValueError, match="t must be above 0, got 0"):
        diffusion_spectral_entropy(rand(3, 2), t=0.0)
    for measure in (diffusion_spectrum, diffusion_spectral_entropy):
        with pytest.raises(ValueError, match="x holds NaN"):
            measure(torch.tensor([[0.0], [1.0], [math.nan]]))
    with pytest.raises(ValueError, match="y holds NaN"):
        diffusion_spectral_information(rand(3, 2), torch.tensor([0.0, 0.0, math.nan]))
    with pytest.raises(ValueError, match="a label a point"):
        diffusion_spectral_information(rand(3, 2), torch.zeros(2))
