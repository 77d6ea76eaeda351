"""Sparsity-constrained optimal transport."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from wellposed import NotConverged
from wellposed.transport.sparse_ot import sparse_ot, sparse_shares


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(n: int, seed: int) -> Tensor:
    w = rand(n, seed=seed) + 0.1
    return w / w.sum()


def marginals(n: int, m: int) -> np.ndarray:
    """The matrix that maps a flat plan to the sums of its rows and columns."""
    return np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])


def by_all_supports(s: Tensor, total: float, k: int, gamma: float) -> float:
    """max <s, t> - gamma/2 ||t||^2 over the simplex and every support of at most k entries."""
    best = -np.inf
    for size in range(1, k + 1):
        for support in combinations(range(len(s)), size):
            on = s[list(support)]
            t = on / gamma + (total - on.sum() / gamma) / size  # stationary under the sum
            if (t >= 0).all():
                best = max(best, float((on * t).sum() - gamma / 2 * t.square().sum()))
    return best


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_columns_are_the_best_of_all_supports(k: int) -> None:
    scores, totals = 2 * rand(5, 6) - 1, weights(6, 1)
    t, threshold = sparse_shares(scores, totals, k, 0.7)
    assert (t.count_nonzero(0) <= k).all()
    torch.testing.assert_close(t.sum(0), totals, rtol=1e-13, atol=0)
    for j in range(6):
        value = float((scores[:, j] * t[:, j]).sum() - 0.35 * t[:, j].square().sum())
        assert value == pytest.approx(by_all_supports(scores[:, j], float(totals[j]), k, 0.7), abs=1e-13)
    used = t > 0
    torch.testing.assert_close((scores - 0.7 * t)[used], threshold.expand(5, 6)[used], rtol=0, atol=1e-14)


def test_one_entry_is_a_hard_assignment() -> None:
    """k = 1: all of a column goes to its best row, and the conjugate is b max s - gamma/2 b^2."""
    scores, totals = rand(5, 6), weights(6, 1)
    t, _ = sparse_shares(scores, totals, 1, 0.7)
    torch.testing.assert_close(t, torch.nn.functional.one_hot(scores.argmax(0), 5).T * totals, rtol=1e-13, atol=0)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 30.0])
def test_without_a_bound_it_is_the_quadratic_program(gamma: float) -> None:
    cost, a, b = rand(4, 3), weights(4, 1), weights(3, 2)
    found = sparse_ot(cost, a, b, k=None, gamma=gamma, tol=1e-12)
    c, sums, target = cost.numpy().ravel(), marginals(4, 3)[:-1], np.concatenate([a, b])[:-1]  # the last is implied
    oracle = minimize(
        lambda t: c @ t + gamma / 2 * t @ t,
        torch.outer(a, b).numpy().ravel(),
        jac=lambda t: c + gamma * t,
        bounds=[(0, None)] * 12,
        constraints={"type": "eq", "fun": lambda t: sums @ t - target},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert oracle.success
    assert found.value.item() == pytest.approx(oracle.fun, rel=1e-8)
    np.testing.assert_allclose(found.plan.numpy().ravel(), oracle.x, atol=1e-6)


def test_the_value_falls_in_k_from_at_most_the_linear_program_to_the_quadratic_one() -> None:
    cost = rand(20, 15)
    values = [float(sparse_ot(cost, k=k, gamma=1.0, check=False).value) for k in (1, 2, 3, 4, 20)]
    weights = np.concatenate([np.full(20, 1 / 20), np.full(15, 1 / 15)])
    linear = linprog(cost.numpy().ravel(), A_eq=marginals(20, 15), b_eq=weights).fun
    assert linear + 0.5 / 15 >= values[0]  # gamma/2 sum b^2
    assert all(later <= before + 1e-9 for before, later in pairwise(values))
    quadratic = sparse_ot(cost, k=None, gamma=1.0)
    assert values[-1] == quadratic.value.item()
    primal = (quadratic.plan * cost).sum() + 0.5 * quadratic.plan.square().sum()
    assert float(primal) == pytest.approx(values[-1], abs=1e-6)  # no gap: a certificate


def test_gradients_by_the_envelope_theorem() -> None:
    cost, logits = rand(5, 4).requires_grad_(), rand(2, 5, seed=3).requires_grad_()

    def value(c: Tensor, free: Tensor) -> Tensor:
        a, b = free[0].softmax(0), free[1, :4].softmax(0)
        return sparse_ot(c, a, b, k=4, gamma=1.0, tol=1e-12).value

    assert torch.autograd.gradcheck(value, (cost, logits), atol=1e-6)


def test_a_batch_of_low_precision() -> None:
    cost = rand(3, 7, 6).float()
    found = sparse_ot(cost, k=4, gamma=0.5, check=False)
    assert found.plan.dtype == found.value.dtype == torch.float32
    for i in range(3):
        alone = sparse_ot(cost[i], k=4, gamma=0.5, check=False)
        assert found.converged[i] == alone.converged
        torch.testing.assert_close(found.plan[i], alone.plan, rtol=0, atol=1e-5)


def test_points_without_weight() -> None:
    a = torch.tensor([0.5, 0.0, 0.5])
    b = torch.tensor([0.0, 0.7, 0.3])
    plan = sparse_ot(rand(3, 3), a, b, k=None, gamma=1.0).plan
    assert plan[1].abs().sum() <= 1e-6
    assert plan[:, 0].abs().sum() == 0


def test_too_few_entries_are_said_so() -> None:
    with pytest.raises(NotConverged, match=r"row error .*: the entries allowed in a column \(1\) or the iterations"):
        sparse_ot(rand(20, 15), k=1, gamma=1.0)
    found = sparse_ot(rand(20, 15), k=1, gamma=1.0, check=False)
    assert not found.converged
    torch.testing.assert_close(found.error, (found.plan.sum(1) - 1 / 20).abs().sum())


@pytest.mark.parametrize("change", [{"k": 0}, {"gamma": 0.0}, {"tol": 0.0}, {"iterations": 0}])
def test_bad_input(change: dict) -> None:
    with pytest.raises(ValueError, match="k and iterations must be at least 1, gamma and tol above 0, got"):
        sparse_ot(rand(3, 3), **({"k": 2, "gamma": 1.0} | change))
