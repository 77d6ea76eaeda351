"""Transport against POT (Python Optimal Transport), an independent implementation."""

from __future__ import annotations

import ot
import pytest
import torch
from torch import Tensor

from wellposed.parts.sinkhorn import sinkhorn


def problem(rows: int = 30, columns: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (rows, columns))
    a, b = (torch.rand(n, generator=g, dtype=torch.float64) + 0.1 for n in (rows, columns))
    return torch.cdist(x, y).square(), a / a.sum(), b / b.sum()


@pytest.mark.parametrize("epsilon", [1.0, 0.1])
def test_the_plan_is_that_of_sinkhorn(epsilon: float) -> None:
    cost, a, b = problem()
    wanted = ot.sinkhorn(a, b, cost, epsilon, method="sinkhorn_log", numItermax=20_000, stopThr=1e-11)
    found = sinkhorn(cost, a, b, epsilon=epsilon, tol=1e-10).plan
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_value_and_gradients_are_those_of_solve() -> None:
    """Its value has the divergence from a x b, too; gradients in weights are known up to a constant.

    It is differentiated through its iterations: its envelope gradients in the weights are those of another entropy.
    """
    (cost, a, b), epsilon = problem(), 0.3
    inputs = [t.clone().requires_grad_() for t in (cost, a, b)]
    wanted = ot.solve(*inputs, reg=epsilon, reg_type="KL", grad="autodiff", tol=1e-11, max_iter=20_000).value
    wanted.backward()
    ours = [t.clone().requires_grad_() for t in (cost, a, b)]
    found = sinkhorn(*ours, epsilon=epsilon, tol=1e-10).value
    found.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=0)
    for mine, theirs, centred in zip(ours, inputs, (False, True, True), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        shift = (mine.grad - theirs.grad).mean() if centred else 0.0
        torch.testing.assert_close(mine.grad - shift, theirs.grad, rtol=0, atol=1e-7)


def test_a_small_epsilon_comes_near_the_exact_plan() -> None:
    """cost of the entropic plan - cost of the best one lies in [0, epsilon log(number of pairs)]."""
    cost, a, b = problem()
    epsilon = 1e-3
    best = float(ot.emd2(a, b, cost))
    found = float((sinkhorn(cost, a, b, epsilon=epsilon, tol=1e-9).plan * cost).sum())
    assert -1e-8 <= found - best <= epsilon * torch.tensor(float(cost.numel())).log().item()
