"""Sinkhorn-Newton-Sparse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wellposed import NotConverged
from wellposed.parts.sinkhorn import sinkhorn
from wellposed.transport.sinkhorn_newton_sparse import sinkhorn_newton_sparse, sparsest


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(n: int, seed: int) -> Tensor:
    w = rand(n, seed=seed) + 0.1
    return w / w.sum()


def cloud(n: int) -> Tensor:
    return torch.cdist(rand(n, 2, seed=1), rand(n, 2, seed=2)).square()


@pytest.mark.parametrize("density", [None, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(30, 40), (40, 30)])
def test_it_solves_what_sinkhorn_solves(shape: tuple[int, int], density: float | None) -> None:
    cost, a, b = rand(*shape), weights(shape[0], 1), weights(shape[1], 2)
    exact = sinkhorn(cost, a, b, epsilon=0.01, tol=1e-12)
    run = sinkhorn_newton_sparse(cost, a, b, epsilon=0.01, density=density, tol=1e-12)
    torch.testing.assert_close(run.coupling.plan, exact.plan, rtol=0, atol=1e-9)
    torch.testing.assert_close(run.coupling.value, exact.value, rtol=1e-10, atol=0)
    torch.testing.assert_close(run.coupling.f + run.coupling.g[0], exact.f + exact.g[0], rtol=0, atol=1e-8)


def test_random_assignments_in_at_most_twenty_newton_steps() -> None:
    cost = rand(200, 200)
    run = sinkhorn_newton_sparse(cost, epsilon=1 / 1200, density=5 / 200)
    assert 1 < run.coupling.newton_steps <= 20
    assert run.kept == pytest.approx(0.025)
    alone = sinkhorn_newton_sparse(cost, epsilon=1 / 1200, sweeps=500, newton_steps=0, check=False)
    assert alone.errors[-1] > 1e-4


def test_the_adaptive_density_converges_faster_than_linearly_on_a_point_cloud() -> None:
    run = sinkhorn_newton_sparse(cloud(80), epsilon=3e-3, tol=1e-12)
    assert run.coupling.newton_steps <= 20
    assert run.kept < 0.5
    before, after = run.errors[-3:-1]
    assert after < 0.1 * before
    fixed = sinkhorn_newton_sparse(cloud(80), epsilon=3e-3, density=2 / 80, tol=1e-12, check=False)
    assert not fixed.coupling.converged


@pytest.mark.parametrize("density", [None, 0.1])
def test_the_thinned_hessian_stays_definite(density: float | None) -> None:
    """The diagonal keeps the full marginals, so thinning only makes the matrix more diagonally dominant."""
    plan = rand(12, 15).pow(8)
    plan = plan / plan.sum()
    thinned = sparsest(density)(plan, torch.tensor(0.5, dtype=torch.float64))
    assert 0 < thinned.count_nonzero() < plan.numel()
    full, thin = (plan.sum(1).diag() - p / plan.sum(0) @ p.T for p in (plan, thinned))
    assert torch.linalg.eigvalsh(thin)[0] >= torch.linalg.eigvalsh(full)[0] - 1e-15
    assert torch.linalg.eigvalsh(full)[0].abs() < 1e-15


def test_what_the_densities_keep() -> None:
    plan = torch.tensor([[0.3, 0.1], [0.02, 0.58]], dtype=torch.float64)
    assert sparsest(0.5)(plan, torch.tensor(1.0)).tolist() == [[0.3, 0.0], [0.0, 0.58]]
    error = torch.tensor(0.2, dtype=torch.float64)
    assert sparsest(None)(plan, error).tolist() == [[0.3, 0.1], [0.0, 0.58]]  # above 0.2 / 4
    assert torch.equal(sparsest(None)(plan, error / 10), plan)


def test_a_batch_and_its_gradient() -> None:
    cost = torch.stack([rand(10, 12), cloud(12)[:10]]).requires_grad_()
    run = sinkhorn_newton_sparse(cost, epsilon=torch.tensor([0.01, 0.1]))
    (grad,) = torch.autograd.grad(run.coupling.value.sum(), cost)
    torch.testing.assert_close(grad, run.coupling.plan, rtol=0, atol=0)
    for i, epsilon in enumerate((0.01, 0.1)):
        alone = sinkhorn(cost[i].detach(), epsilon=epsilon, tol=1e-12).plan
        torch.testing.assert_close(run.coupling.plan[i], alone, rtol=0, atol=1e-8)


def test_bad_input_and_what_did_not_converge() -> None:
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], or None to adapt it, got 0"):
        sinkhorn_newton_sparse(rand(3, 3), epsilon=0.1, density=0)
    with pytest.raises(ValueError, match="sweeps and newton_steps at least 0"):
        sinkhorn_newton_sparse(rand(3, 3), epsilon=0.1, newton_steps=-1)
    with pytest.raises(NotConverged, match="after 2 sweeps and 1 Newton steps, not 1e-10"):
        sinkhorn_newton_sparse(rand(30, 30), epsilon=0.001, sweeps=2, newton_steps=1)
