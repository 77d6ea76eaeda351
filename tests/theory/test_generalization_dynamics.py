"""Dynamics of generalisation: quadrature, expectations by linear algebra, and the identities of the paper."""

from __future__ import annotations

import math

import pytest
import torch

from wellposed.core.card import card
from wellposed.theory.generalization_dynamics import LinearDynamics, estimate_snr

TIMES = torch.tensor([0.0, 0.1, 1.0, 10.0, 100.0])


@pytest.mark.parametrize("alpha", [0.25, 1.0, 3.0])
def test_marchenko_pastur_moments(alpha: float) -> None:
    theory = LinearDynamics.marchenko_pastur(alpha)
    assert float(theory.weights.sum()) == pytest.approx(min(1, alpha), rel=1e-6)
    assert float(theory.weights @ theory.eigenvalues) == pytest.approx(alpha, rel=1e-6)
    assert float(theory.weights @ theory.eigenvalues.square()) == pytest.approx(alpha + alpha**2, rel=1e-6)


def test_data_by_linear_algebra() -> None:
    """Mean and covariance of the weights under gradient flow, by matrix exponentials."""
    assert card(LinearDynamics).formula
    g = torch.Generator().manual_seed(0)
    snr, inr = 3.0, 0.5
    for rows, columns in ((4, 6), (9, 5)):
        x, new = (torch.randn(n, columns, generator=g, dtype=torch.float64) for n in (rows, 7))
        gram, theory = x.T @ x, LinearDynamics.of_data(x, new)
        for i, t in enumerate(TIMES.tolist()):
            flow = torch.linalg.matrix_exp(-gram * t)  # what is left of the initial distance
            taught = (torch.eye(columns, dtype=torch.float64) - flow) @ torch.linalg.pinv(x)
            spread = (snr + inr) * flow @ flow.T + taught @ taught.T  # of weights minus teacher
            test = torch.einsum("mi,ij,mj->m", new, spread, new).mean() + 1
            assert float(theory.test_error(TIMES, snr, inr)[i]) == pytest.approx(float(test), rel=1e-8)
            left = x @ taught - torch.eye(rows, dtype=torch.float64)
            train = ((snr + inr) * (x @ flow).square().sum() + left.square().sum()) / rows
            assert float(theory.train_error(TIMES, snr, inr)[i]) == pytest.approx(float(train), rel=1e-8)
        solved = torch.linalg.solve(gram + torch.eye(columns, dtype=torch.float64) / snr, x.T)
        bias = solved @ x - torch.eye(columns, dtype=torch.float64)
        spread = snr * bias @ bias.T + solved @ solved.T
        ridge = torch.einsum("mi,ij,mj->m", new, spread, new).mean() + 1
        assert theory.ridge_error(snr) == pytest.approx(float(ridge), rel=1e-8)


def test_white_data_approach_the_limit() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 600, generator=g, dtype=torch.float64) / math.sqrt(600)
    data, limit = LinearDynamics.of_data(x), LinearDynamics.marchenko_pastur(0.5)
    for ours, theirs in (
        (data.test_error(TIMES, 5.0, 1.0), limit.test_error(TIMES, 5.0, 1.0)),
        (data.train_error(TIMES, 5.0, 1.0), limit.train_error(TIMES, 5.0, 1.0)),
    ):
        assert torch.allclose(ours, theirs, rtol=0.02)  # fluctuations of spectral means are of order 1 / N


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_ridge_bounds_early_stopping_from_below(alpha: float) -> None:
    theory = LinearDynamics.marchenko_pastur(alpha)
    stop = theory.best_stop(5.0)
    assert theory.ridge_error(5.0) <= stop.error < 1.02 * theory.ridge_error(5.0)
    assert all(theory.ridge_error(5.0) < theory.ridge_error(5.0, g) for g in (0.1, 0.4))
    around = theory.test_error(stop.time * torch.linspace(0.5, 2, 101), 5.0)
    assert stop.error <= float(around.min()) + 1e-9


def test_overtraining_is_worst_at_as_many_samples_as_parameters() -> None:
    def lost(alpha: float) -> float:
        theory = LinearDynamics.marchenko_pastur(alpha)
        return float(theory.test_error(torch.tensor([1000.0]), 5.0)[0]) - theory.best_stop(5.0).error

    assert lost(1.0) > 10 * max(lost(0.5), lost(2.0))


def test_one_direction_stops_at_its_own_time() -> None:
    theory = LinearDynamics.of_data(torch.tensor([[2.0, 0.0]]))
    assert theory.best_stop(5.0).time == pytest.approx(math.log(1 + 5 * 4) / 4)
    assert theory.frozen == pytest.approx(2.0)


def test_snr_of_labels() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 300, generator=g) / math.sqrt(300)
    y = x @ torch.randn(300, 20, generator=g) * math.sqrt(4.0) + torch.randn(500, 20, generator=g)
    assert estimate_snr(x, y) == pytest.approx(4.0, rel=0.1)  # 20 outputs x 300 weights: some 2 % each
    assert estimate_snr(x, torch.randn(500, 20, generator=g)) < 0.1
    with pytest.raises(ValueError, match="as many labels"):
        estimate_snr(x, y[:3])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="alpha must be above 0"):
        LinearDynamics.marchenko_pastur(0.0)
    with pytest.raises(ValueError, match="samples, features"):
        LinearDynamics.of_data(torch.randn(3))
    with pytest.raises(ValueError, match="all zero"):
        LinearDynamics.of_data(torch.zeros(3, 2))
