"""Sinkhorn: values, gradients, convergence."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wellposed import NotConverged
from wellposed.parts import entropic as entropic_module
from wellposed.parts.sinkhorn import sinkhorn


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(*shape: int, seed: int = 1) -> Tensor:
    w = rand(*shape, seed=seed) + 0.1
    return w / w.sum(-1, keepdim=True)


def plain(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, tol: float) -> tuple[Tensor, float, int]:
    """Plan, value and sweeps of Sinkhorn as in the textbook: logarithms, no relaxation."""
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    sweep = 0
    while sweep < 10_000:
        sweep += 1
        f = -epsilon * torch.logsumexp(b.log() + (g - cost) / epsilon, 1)
        g = -epsilon * torch.logsumexp(a.log()[:, None] + (f[:, None] - cost) / epsilon, 0)
        plan = a[:, None] * b * ((f[:, None] + g - cost) / epsilon).exp()
        if (plan.sum(1) - a).abs().sum() <= tol:
            break
    divergence = (plan * (plan / (a[:, None] * b)).log()).sum()
    return plan, float((plan * cost).sum() + epsilon * divergence), sweep


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_plan_and_value_are_those_of_the_textbook(shape: tuple[int, int], epsilon: float) -> None:
    cost, a, b = rand(*shape), weights(shape[0]), weights(shape[1], seed=2)
    plan, value, _ = plain(cost, a, b, epsilon, 1e-11)
    found = sinkhorn(cost, a, b, epsilon=epsilon, tol=1e-10)
    torch.testing.assert_close(found.plan, plan, rtol=0, atol=1e-8)  # the error times 1 / (1 - rate)
    assert found.value.item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("epsilon", [10.0, 0.3, 0.02])
def test_two_points_in_closed_form(epsilon: float) -> None:
    """P = [[p, 1/2 - p], [1/2 - p, p]] with (p / (1/2 - p))^2 = exp((C12 + C21 - C11 - C22) / epsilon)."""
    cost = rand(2, 2)
    half = (cost[0, 1] + cost[1, 0] - cost[0, 0] - cost[1, 1]) / (2 * epsilon)
    p = 0.5 * half.sigmoid()
    found = sinkhorn(cost, epsilon=epsilon, tol=1e-13).plan
    torch.testing.assert_close(found, torch.stack([p, 0.5 - p, 0.5 - p, p]).view(2, 2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5])
def test_a_vanishing_epsilon_gives_the_best_assignment(epsilon: float) -> None:
    """Within epsilon log n of it, and the plan is concentrated there."""
    cost = rand(40, 40)
    best = cost[linear_sum_assignment(cost)].mean().item()
    found = sinkhorn(cost, epsilon=epsilon, tol=1e-9)
    assert -1e-9 <= (found.plan * cost).sum().item() - best <= epsilon * math.log(40)


def test_gradients_by_the_envelope_theorem() -> None:
    cost, logits = rand(5, 4).requires_grad_(), rand(2, 5, seed=3).requires_grad_()

    def value(c: Tensor, free: Tensor) -> Tensor:
        a, b = free[0].softmax(0), free[1, :4].softmax(0)
        return sinkhorn(c, a, b, epsilon=0.2, tol=1e-13).value

    assert torch.autograd.gradcheck(value, (cost, logits), atol=1e-7)
    (grad,) = torch.autograd.grad(sinkhorn(cost, epsilon=0.2, tol=1e-13).value, cost)
    torch.testing.assert_close(grad, sinkhorn(cost, epsilon=0.2, tol=1e-13).plan, rtol=0, atol=0)


def test_second_derivatives_are_refused() -> None:
    cost = rand(3, 3).requires_grad_()
    (grad,) = torch.autograd.grad(sinkhorn(cost, epsilon=0.2).value.square(), cost, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()  # type: ignore[no-untyped-call]


def test_a_batch_is_solved_as_its_members_are() -> None:
    cost, a, epsilon = rand(3, 8, 11), weights(3, 8), torch.tensor([1.0, 0.1, 0.004])
    together = sinkhorn(cost, a, epsilon=epsilon, tol=1e-11)
    assert together.value.shape == together.converged.shape == (3,)
    for i in range(3):
        alone = sinkhorn(cost[i], a[i], epsilon=float(epsilon[i]), tol=1e-11)
        torch.testing.assert_close(together.plan[i], alone.plan, rtol=0, atol=1e-8)
        torch.testing.assert_close(together.value[i], alone.value, rtol=0, atol=1e-9)


def test_weights_may_be_shared_by_a_batch_and_have_gradients() -> None:
    a = weights(8).requires_grad_()
    sinkhorn(rand(3, 8, 11), a, epsilon=0.1).value.sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert a.grad.shape == (8,)


@pytest.mark.parametrize("epsilon", [0.1, 1e-3])
def test_points_without_weight_take_no_mass_and_change_nothing(epsilon: float) -> None:
    cost, a = rand(10, 10), weights(10).index_fill(0, torch.tensor([2, 7]), 0.0)
    a = a / a.sum()
    kept = a > 0
    found, without = (sinkhorn(c, w, epsilon=epsilon, tol=1e-10) for c, w in ((cost, a), (cost[kept], a[kept])))
    assert found.plan[~kept].abs().sum() == 0
    assert found.f.isfinite().all()
    torch.testing.assert_close(found.plan[kept], without.plan, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_solved_as_well(dtype: torch.dtype) -> None:
    cost = rand(20, 30).to(dtype)
    found, exact = sinkhorn(cost, epsilon=1e-3), sinkhorn(cost.double(), epsilon=1e-3)
    assert found.plan.dtype == found.value.dtype == dtype
    assert found.f.dtype == torch.float64
    assert found.error == exact.error <= 1e-6
    torch.testing.assert_close(found.value.double(), exact.value, rtol=torch.finfo(dtype).eps, atol=0)


def test_over_relaxation_needs_less_than_a_fifth_of_the_sweeps() -> None:
    cost, uniform = rand(30, 30), torch.full((30,), 1 / 30, dtype=torch.float64)
    _, _, sweeps = plain(cost, uniform, uniform, 0.015, 1e-9)
    found = sinkhorn(cost, epsilon=0.015, tol=1e-9, newton_steps=0)
    assert sweeps > 300
    assert found.sweeps < sweeps / 5


def test_newton_is_taken_where_sweeps_are_slow_and_only_there() -> None:
    assert sinkhorn(rand(30, 30), epsilon=0.5).newton_steps == 0
    slow = sinkhorn(rand(30, 30), epsilon=5e-4, tol=1e-9)
    assert 0 < slow.newton_steps < 40
    assert slow.sweeps < 200


def test_what_did_not_converge_says_so() -> None:
    cost = rand(30, 30)
    with pytest.raises(NotConverged, match=r"marginal error .* after 20 sweeps and 0 Newton steps, not 1e-06: allow"):
        sinkhorn(cost, epsilon=1e-3, sweeps=20, newton_steps=0)
    found = sinkhorn(cost, epsilon=1e-3, sweeps=20, newton_steps=0, check=False)
    assert not found.converged
    error = (found.plan.sum(0) - 1 / 30).abs().sum() + (found.plan.sum(1) - 1 / 30).abs().sum()
    torch.testing.assert_close(found.error, error)
    one = sinkhorn(torch.stack([cost, 0 * cost]), epsilon=1e-3, sweeps=20, newton_steps=0, check=False)
    assert one.converged.tolist() == [False, True]


@pytest.mark.parametrize("seed", range(12))
def test_converges_on_uneven_weights_ties_and_tiny_epsilons(seed: int) -> None:
    cost = torch.randint(0, 3, (18, 14), generator=torch.Generator().manual_seed(seed)).double()
    if seed % 2:
        cost = rand(18, 14, seed=seed).exp().square()
    a, b = rand(18, seed=seed + 50).pow(4), rand(14, seed=seed + 90).pow(4)
    a[seed] = 0
    for epsilon in (1e-1, 1e-3, 1e-4):
        found = sinkhorn(cost, a / a.sum(), b / b.sum(), epsilon=epsilon * float(cost.mean()), tol=1e-8)
        assert found.f.isfinite().all()
        assert found.plan.isfinite().all()


@pytest.mark.parametrize("epsilon", [0.3, 0.01])
def test_newton_has_the_gradient_and_hessian_of_the_semi_dual(epsilon: float) -> None:
    """Gradient a - P 1, Hessian -(diag(P 1) - P diag(1/b) P^T) / epsilon, by automatic differentiation."""
    problem = entropic_module.entropic(rand(5, 7), weights(5), weights(7, seed=2), epsilon)
    f = 0.02 * rand(5, seed=5)

    def semi_dual(x: Tensor) -> Tensor:
        scaled = problem.a.log() + (x - problem.cost.T) / epsilon
        return (x * problem.a).sum() - epsilon * (torch.logsumexp(scaled, 1) * problem.b).sum()

    hessian = torch.autograd.functional.hessian(semi_dual, f)  # type: ignore[no-untyped-call]
    gradient = torch.autograd.functional.jacobian(semi_dual, f)  # type: ignore[no-untyped-call]
    _, plan = problem.columns(f)
    torch.testing.assert_close(problem.a - plan.sum(1), gradient, rtol=0, atol=1e-14)
    direction = epsilon * entropic_module.newton_direction(plan, plan.sum(1), gradient, problem.b)
    torch.testing.assert_close(-hessian @ direction, gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cost": torch.ones(3)}, r"cost must be a floating-point matrix \(..., n, m\), got torch.float32 \(3,\)"),
        ({"cost": torch.ones(3, 3, dtype=torch.long)}, "cost must be a floating-point matrix"),
        ({"cost": torch.ones(3, 0)}, "cost must be a floating-point matrix"),
        ({"cost": torch.full((2, 2), torch.inf)}, "cost must be finite"),
        ({"epsilon": 0.0}, "epsilon must be above 0, got 0"),
        ({"epsilon": torch.ones(2)}, r"epsilon must be a number, or one for each problem: \(\), got \(2,\)"),
        ({"a": torch.ones(4)}, r"weights a must be \(3,\) or \(3,\), got \(4,\)"),
        ({"b": torch.tensor([0.5, 0.6, -0.1])}, "weights b must be at least 0 and sum to 1"),
        ({"a": torch.ones(3)}, "weights a must be at least 0 and sum to 1"),
        ({"tol": 0.0}, "tol must be above 0, sweeps at least 1"),
    ],
)
def test_bad_input(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sinkhorn(**({"cost": torch.ones(3, 3), "epsilon": 0.1} | change))
