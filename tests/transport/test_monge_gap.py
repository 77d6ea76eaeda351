"""Monge gap and Sinkhorn divergence."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from wellposed.transport.monge_gap import Cost, monge_gap, pairwise, sinkhorn_divergence, squared_distance


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x - y, dim=-1)


def exact_gap(x: Tensor, mapped: Tensor, cost: Cost = squared_distance) -> float:
    """By the best assignment."""
    costs = cost(x[:, None], mapped[None])
    return float(cost(x, mapped).mean() - costs[linear_sum_assignment(costs)].mean())


@pytest.mark.parametrize("cost", [squared_distance, distance])
@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.01])
def test_the_gap_is_one_to_two_times_epsilon_log_n_above_the_exact_one(cost: Cost, epsilon: float) -> None:
    """log n <= H(P) <= 2 log n for couplings of equal weights; the second holds for the best assignment, too."""
    x, mapped = randn(24, 3), randn(24, 3, seed=1)
    found = monge_gap(x, mapped, cost=cost, epsilon=epsilon, tol=1e-9).item()
    slack = epsilon * math.log(24)
    assert exact_gap(x, mapped, cost) + slack - 1e-8 <= found <= exact_gap(x, mapped, cost) + 2 * slack + 1e-8


def test_value_by_explicit_loops() -> None:
    """<P_identity - P, C> - epsilon sum P log P with the P of a plain Sinkhorn."""
    x, mapped, epsilon = randn(5, 2), randn(5, 2, seed=1), 0.7
    cost = torch.tensor([[float(((p - q) ** 2).sum()) for q in mapped] for p in x], dtype=torch.float64)
    plan = (-cost / epsilon).exp()
    for _ in range(2000):
        plan = plan / plan.sum(1, keepdim=True) / 5
        plan = plan / plan.sum(0) / 5
    least = sum(plan[i, j] * (cost[i, j] + epsilon * plan[i, j].log()) for i in range(5) for j in range(5))
    expected = sum(cost[i, i] for i in range(5)) / 5 - least
    torch.testing.assert_close(monge_gap(x, mapped, epsilon=epsilon, tol=1e-10), expected, rtol=1e-9, atol=0)


def test_gradients_of_convex_functions_have_no_gap_and_rotations_have() -> None:
    """Brenier: x -> x A with A positive definite is optimal; turned by 90 degrees a normal law moves by 4, not by 0."""
    x, factor = randn(150, 2), randn(2, 2, seed=3)
    epsilon = 1e-3
    least = 2 * epsilon * math.log(150)
    assert monge_gap(x, x @ (factor @ factor.T) + 1, epsilon=epsilon).item() <= least + 1e-6
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    gap = monge_gap(x, x @ quarter, epsilon=epsilon).item()
    assert 0 <= gap - exact_gap(x, x @ quarter) <= least + 1e-6
    assert gap > 2


def test_gradients() -> None:
    x, mapped = randn(6, 2).requires_grad_(), randn(6, 2, seed=1).requires_grad_()
    for cost in (squared_distance, distance):
        assert torch.autograd.gradcheck(lambda p, q: monge_gap(p, q, cost=cost, epsilon=0.5, tol=1e-12), (x, mapped))  # noqa: B023
    assert torch.autograd.gradcheck(lambda p, q: sinkhorn_divergence(p, q, epsilon=0.5, tol=1e-12), (x, mapped))


def test_pairs() -> None:
    x, y = randn(2, 5, 3) + 100, randn(2, 4, 3, seed=1) + 100
    by_cost = squared_distance(x[:, :, None], y[:, None])
    torch.testing.assert_close(pairwise(x, y), by_cost, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pairwise(x, y, distance), by_cost.sqrt())


def test_the_divergence_of_a_shifted_cloud_is_the_squared_shift() -> None:
    """Whatever epsilon is: entropic costs change by the shift alone, and the clouds' own terms cancel."""
    x, shift = randn(20, 3), torch.tensor([0.5, -1.0, 2.0])
    for epsilon in (0.1, 10.0):
        found = sinkhorn_divergence(x, x + shift, epsilon=epsilon, tol=1e-10)
        torch.testing.assert_close(found, shift.double().square().sum(), rtol=1e-8, atol=0)


def test_the_divergence_is_zero_with_zero_gradient_at_equal_clouds_and_positive_elsewhere() -> None:
    x = randn(12, 2).requires_grad_()
    found = sinkhorn_divergence(x, x.detach(), epsilon=0.3, tol=1e-11)
    (grad,) = torch.autograd.grad(found, x)
    assert found.abs() < 1e-9
    assert grad.abs().max() < 1e-9
    assert sinkhorn_divergence(x, randn(9, 2, seed=4), epsilon=0.3) > 0


def test_a_batch_with_the_default_epsilon() -> None:
    x, mapped = randn(3, 10, 2), randn(3, 10, 2, seed=1) * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1)
    for function in (monge_gap, sinkhorn_divergence):
        together = function(x, mapped, tol=1e-10)
        alone = torch.stack([function(p, q, tol=1e-10) for p, q in zip(x, mapped, strict=True)])
        torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-9)


def test_points_that_do_not_move() -> None:
    x = torch.ones(4, 2)
    assert monge_gap(x, x).isfinite()
    assert sinkhorn_divergence(x, x) == 0


class Attend(nn.Module):
    """Images that depend on all points, through attention."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.view(-1, 16, 4)).view_as(x)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_lowers_the_gap_of_networks(kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = (
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
            if kind == "conv"
            else Attend()
        )
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    gaps = []
    for _ in range(15):
        loss = monge_gap(x.flatten(1), (model(x) - x).flatten(1), epsilon=0.5)  # begins near a reflection
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        gaps.append(loss.item())
    assert gaps[-1] < 0.9 * gaps[0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"must have the same shape \(..., n, d\), got \(3, 2\) and \(4, 2\)"):
        monge_gap(randn(3, 2), randn(4, 2))
