"""Spectra against numpy's decompositions, closed forms, and at the places where gradients go wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wellposed.parts import spectra as s


def matrix(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def p_log_p(values: np.ndarray) -> float:
    p = values[values > 0] / values.sum()
    return float(-(p * np.log(p)).sum())


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (2, 5, 3)])
def test_against_numpy(shape: tuple[int, ...]) -> None:
    x = matrix(*shape)
    sigma = np.linalg.svd(x.numpy(), compute_uv=False)
    np.testing.assert_allclose(s.singular_values(x), sigma, rtol=1e-12)
    np.testing.assert_allclose(s.eigenvalues(x), sigma[..., ::-1] ** 2, rtol=1e-9)
    np.testing.assert_allclose(s.nuclear_norm(x), sigma.sum(-1), rtol=1e-12)
    np.testing.assert_allclose(s.stable_rank(x), (sigma**2).sum(-1) / sigma[..., 0] ** 2, rtol=1e-10)
    rows = sigma.reshape(-1, sigma.shape[-1])
    np.testing.assert_allclose(s.von_neumann_entropy(x).reshape(-1), [p_log_p(r**2) for r in rows], rtol=1e-10)
    for power in (1, 2):
        expected = [math.exp(p_log_p(r**power)) for r in rows]
        np.testing.assert_allclose(s.effective_rank(x, power).reshape(-1), expected, rtol=1e-10)


@pytest.mark.parametrize("correction", [0, 1])
def test_covariance(correction: int) -> None:
    x = matrix(9, 4) + 100
    np.testing.assert_allclose(s.covariance(x, correction), np.cov(x.numpy().T, ddof=correction), rtol=1e-10)


def test_renyi() -> None:
    values = torch.tensor([1.0, 2.0, 5.0, 0.0], dtype=torch.float64)
    p = values / 8
    assert s.renyi_entropy(values, 2).item() == pytest.approx(-math.log(float(p.square().sum())), rel=1e-12)
    assert s.renyi_entropy(values, 1).item() == pytest.approx(p_log_p(values.numpy()), rel=1e-9)
    assert s.renyi_entropy(values, math.inf).item() == pytest.approx(-math.log(5 / 8), rel=1e-12)
    assert s.renyi_entropy(values, 1 + 1e-6).item() == pytest.approx(s.entropy(values).item(), abs=1e-6)
    with pytest.raises(ValueError, match="order must be above 0, got 0"):
        s.renyi_entropy(values, 0)
    with pytest.raises(ValueError, match="power must be 1 or 2, got 3"):
        s.effective_rank(matrix(2, 2), 3)


@pytest.mark.parametrize("measure", [s.von_neumann_entropy, s.effective_rank, s.nuclear_norm, s.stable_rank])
def test_gradient(measure: object) -> None:
    for shape in ((5, 3), (3, 5)):
        assert torch.autograd.gradcheck(measure, matrix(*shape).requires_grad_())  # type: ignore[arg-type]


def test_entropy_of_coinciding_eigenvalues() -> None:
    """At C = I / d the gradient of S(C) along the trace-one matrices is 0, and torch's eigh of C would give NaN."""
    x = torch.linalg.qr(matrix(8, 4)).Q.requires_grad_()
    value = s.von_neumann_entropy(x)
    assert value.item() == pytest.approx(math.log(4), rel=1e-12)
    (slope,) = torch.autograd.grad(value, x)
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("measure", [s.von_neumann_entropy, s.nuclear_norm, s.stable_rank, s.effective_rank])
def test_rank_one_and_zero_have_finite_gradients(measure: object) -> None:
    for x in (matrix(6, 1) @ matrix(1, 4), torch.zeros(6, 4, dtype=torch.float64)):
        x.requires_grad_()
        value = measure(x)  # type: ignore[operator]
        assert torch.autograd.grad(value, x)[0].isfinite().all()
    one = matrix(6, 1) @ matrix(1, 4)
    assert s.von_neumann_entropy(one).item() == pytest.approx(0, abs=1e-9)
    assert s.stable_rank(one).item() == pytest.approx(1, rel=1e-12)


def test_half_precision_is_computed_in_float32() -> None:
    x = matrix(6, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = s.von_neumann_entropy(x)
        assert s.covariance(x).dtype == found.dtype == torch.float32
    assert found.item() == pytest.approx(s.von_neumann_entropy(x.double()).item(), rel=1e-5)


@pytest.mark.parametrize("seed", [232, 599, 879])
def test_units_that_are_almost_dead(seed: int) -> None:
    """Scales from 1 down to e^-60 and 0: on these LAPACK's symmetric solver gave NaN or an error, in float32."""
    g = torch.Generator().manual_seed(seed)
    size, small, alive = torch.rand(3, 64, generator=g)
    x = torch.randn(200, 64, generator=g) * torch.exp(-60 * size * (small < 0.5)) * (alive < 0.6)
    expected = torch.linalg.svdvals(x.double()).square().flip(0)
    torch.testing.assert_close(s.eigenvalues(x).double(), expected, rtol=1e-5, atol=1e-5 * float(expected[-1]))
    assert s.von_neumann_entropy(x).item() == pytest.approx(s.von_neumann_entropy(x.double()).item(), rel=1e-5)
