"""Elastic costs and their entropic maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from wellposed import NotConverged
from wellposed.parts.sinkhorn import sinkhorn
from wellposed.transport.elastic_map import (
    ElasticCost,
    elastic_l1,
    elastic_vanishing,
    entropic_map,
)
from wellposed.transport.monge_gap import monge_gap

COSTS = {"l1": elastic_l1(0.7), "vanishing": elastic_vanishing(0.7)}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_the_slope_is_the_gradient_of_tau_which_is_even(cost: ElasticCost) -> None:
    z = randn(4, 3, 5)
    by_autograd = torch.func.grad(lambda u: cost.tau(u).sum())(z)
    torch.testing.assert_close(cost.slope(z), by_autograd, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(cost.tau(-z), cost.tau(z), rtol=1e-14, atol=0)
    assert (cost.tau(z) > 0).all()
    assert cost.tau(torch.zeros(3, 5)).abs().max() == 0


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_prox_is_stationary_and_best_among_neighbours(cost: ElasticCost) -> None:
    v = 2 * randn(6, 5)
    u = cost.prox(v)

    def objective(w: Tensor) -> Tensor:
        return (w - v).square().sum(-1) / 2 + cost.tau(w)

    moved = u != 0
    torch.testing.assert_close((u + cost.slope(u))[moved], v[moved], rtol=1e-9, atol=1e-12)
    for seed in range(50):
        assert (objective(u) <= objective(u + 0.05 * randn(6, 5, seed=seed)) + 1e-12).all()


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_prox_is_the_gradient_of_the_conjugate(cost: ElasticCost) -> None:
    """grad h* = prox_tau, so v = grad h(z) is brought back to z: here for z with every coordinate away from 0."""
    z = randn(6, 5) + 2 * randn(6, 5, seed=1).sign()
    torch.testing.assert_close(cost.prox(z + cost.slope(z)), z, rtol=1e-9, atol=1e-12)


def test_vanishing_threshold_by_hand() -> None:
    s = math.asinh(1.3 / 1.4)
    tau = 0.49 * (s + 0.5 - 0.5 * math.exp(-2 * s))
    assert COSTS["vanishing"].tau(torch.tensor([-1.3])).item() == pytest.approx(tau, rel=1e-6)
    assert tau == pytest.approx(0.61, abs=0.005)  # without |z| it would be -1.45
    v = torch.tensor([-2.0, -0.7, 0.0, 0.3, 1.4])
    expected = [-2 + 0.49 / 2, 0.0, 0.0, 0.0, 1.4 - 0.49 / 1.4]
    assert COSTS["vanishing"].prox(v).tolist() == pytest.approx(expected, rel=1e-6)


def test_the_map_by_explicit_loops() -> None:
    x, y, new, epsilon = randn(7, 3), randn(5, 3, seed=1) + 1, randn(4, 3, seed=2), 0.5
    for cost in COSTS.values():
        costs = torch.stack([torch.stack([cost(p, q) for q in y]) for p in x])
        g = sinkhorn(costs, epsilon=epsilon, tol=1e-10).g
        rows = []
        for p in new:
            shares = torch.stack([((g[j] - cost(p, y[j])) / epsilon).exp() for j in range(5)])
            shares = shares / shares.sum()
            mean = sum(shares[j] * (y[j] - cost.slope((p - y[j])[None])[0]) for j in range(5))
            rows.append(p - cost.prox((p - mean)[None])[0])
        found = entropic_map(x, y, cost, epsilon=epsilon, tol=1e-10)(new)
        torch.testing.assert_close(found, torch.stack(rows), rtol=1e-8, atol=1e-10)


def test_without_a_penalty_it_is_the_barycentric_map() -> None:
    """gamma = 0, at the points it was fitted to: rows of the plan, normalised, times the targets."""
    x, y = randn(12, 3), randn(9, 3, seed=1) + 1
    a = torch.arange(1.0, 13.0) / 78
    plan = sinkhorn(torch.cdist(x, y).square() / 2, a, epsilon=0.5, tol=1e-11).plan
    found = entropic_map(x, y, elastic_l1(0.0), a=a, epsilon=0.5, tol=1e-11)
    torch.testing.assert_close(found(x), plan @ y / plan.sum(1, keepdim=True), rtol=1e-9, atol=1e-10)


def test_displacements_of_points_are_sparse_and_find_the_coordinate_that_moves() -> None:
    x, y = torch.rand(2, 60, 8, generator=torch.Generator().manual_seed(0))
    y[:, 2] += 5
    for cost in (elastic_l1(2.0), elastic_vanishing(1.0)):
        moved = entropic_map(x, y, cost).displacement(x)
        assert moved.dtype == torch.float32
        assert (moved[:, 2] != 0).all()
        assert (moved == 0).double().mean() > 0.5
    assert (entropic_map(x, y, elastic_l1(0.0)).displacement(x) != 0).all()


def test_it_is_a_module_that_is_saved_and_differentiated() -> None:
    x, y = randn(10, 4), randn(10, 4, seed=1) + 2
    first = entropic_map(x, y, COSTS["l1"])
    other = entropic_map(x, y + 1, COSTS["l1"], epsilon=first.epsilon)
    assert not torch.equal(first(x), other(x))
    other.load_state_dict(first.state_dict())
    assert torch.equal(first(x), other(x))
    assert torch.autograd.gradcheck(first, (randn(3, 4, seed=5).requires_grad_(),))
    composed = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.BatchNorm1d(4, dtype=torch.float64), first)
    composed(x).sum().backward()
    assert composed[0].weight.grad is not None


def test_large_samples_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = randn(10, 4), randn(7, 4, seed=1)
    whole = entropic_map(x, y, COSTS["l1"])(x)
    monkeypatch.setattr("wellposed.transport.elastic_map.ENTRIES", 60)  # two points at a time
    torch.testing.assert_close(entropic_map(x, y, COSTS["l1"])(x), whole, rtol=1e-12, atol=1e-14)


def test_elastic_costs_are_costs_of_the_monge_gap() -> None:
    x = randn(20, 3)
    shift = torch.tensor([1.0, 0.0, 0.0])
    slack = 2 * 0.01 * math.log(20)
    assert monge_gap(x, x + shift, cost=COSTS["vanishing"], epsilon=0.01).item() <= slack + 1e-6
    assert monge_gap(x, -x, cost=COSTS["vanishing"], epsilon=0.01).item() > 1


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="gamma must be at least 0, got -1"):
        elastic_l1(-1)
    with pytest.raises(ValueError, match="gamma must be above 0, got 0"):
        elastic_vanishing(0)
    with pytest.raises(ValueError, match=r"samples must be \(n, d\) and \(m, d\), got \(3, 2\) and \(3, 4\)"):
        entropic_map(randn(3, 2), randn(3, 4), COSTS["l1"])
    with pytest.raises(NotConverged, match="marginal error"):
        entropic_map(randn(30, 2), randn(30, 2, seed=1), COSTS["l1"], epsilon=1e-3, tol=1e-30)
