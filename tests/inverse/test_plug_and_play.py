"""Plug and play: solutions of known problems, a falling objective, and no silent failure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wellposed import NotConverged
from wellposed.inverse.learned_proximal import LearnedProximal
from wellposed.inverse.plug_and_play import Solver, plug_and_play
from wellposed.parts.convex import InputConvex
from wellposed.parts.proximal import soft_threshold

solvers = pytest.mark.parametrize("solver", ["pgd", "admm"])


def problem(measured: int = 5, size: int = 8, rows: int = 3) -> tuple[Tensor, Tensor, Callable, Callable]:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(measured, size, generator=g, dtype=torch.float64)
    y = torch.randn(rows, measured, generator=g, dtype=torch.float64)
    return matrix, y, lambda x: x @ matrix.T, lambda r: r @ matrix


@solvers
def test_a_quadratic_prior_is_a_ridge_regression(solver: Solver) -> None:
    matrix, y, forward, adjoint = problem()
    weight = 0.05
    found = plug_and_play(
        y, forward, adjoint, lambda v: v / 1.5, solver=solver, weight=weight, tol=1e-9, iterations=2000
    )
    ridge = torch.linalg.solve(weight * matrix.T @ matrix + 0.5 * torch.eye(8, dtype=torch.float64), weight * matrix.T)
    torch.testing.assert_close(found.x, y @ ridge.T, rtol=0, atol=1e-6)


@solvers
def test_a_soft_threshold_solves_the_lasso(solver: Solver) -> None:
    """Its conditions: weight A^T (y - A x) is sign(x) where x is not 0, and within [-1, 1] elsewhere."""
    _, y, forward, adjoint = problem()
    weight = 0.9 / 20 if solver == "pgd" else 0.5
    y = 20 * y
    found = plug_and_play(
        y, forward, adjoint, lambda v: soft_threshold(v, 1.0), solver=solver, weight=weight, tol=1e-9, iterations=20000
    )
    slope = weight * adjoint(y - forward(found.x))
    zero = found.x == 0
    assert 0 < int(zero.sum()) < zero.numel()
    torch.testing.assert_close(slope[~zero], found.x.sign()[~zero], rtol=0, atol=1e-4)
    assert slope[zero].abs().max() < 1 + 1e-4


def learned(kernel: int | None = None) -> LearnedProximal:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        convex = InputConvex(1 if kernel else 8, (12, 8), kernel=kernel, strong=0.1).double()
    return LearnedProximal(convex)


def test_descent_lowers_the_objective_at_every_step() -> None:
    """An image with half of its pixels, under the prior of a convolutional network."""
    g = torch.Generator().manual_seed(0)
    seen = (torch.rand(4, 1, 6, 6, generator=g) < 0.5).double()
    y = seen * torch.rand(4, 1, 6, 6, generator=g, dtype=torch.float64)
    found = plug_and_play(y, lambda x: seen * x, lambda r: seen * r, learned(3), tol=1e-7, iterations=5000)
    assert found.objective is not None
    assert found.objective.shape == found.changes.shape
    assert found.weight == pytest.approx(0.9)
    falls = found.objective[:-1] - found.objective[1:]
    assert (falls >= -1e-12).all()
    assert falls[0].min() > 1e-4


def test_both_solvers_end_where_the_objective_is_flat() -> None:
    """weight A^T (A x - y) + grad phi(x) = 0, with grad phi(x) = f^{-1}(x) - x."""
    matrix, y, forward, adjoint = problem()
    weight, prox = 0.9 / float(torch.linalg.matrix_norm(matrix, 2) ** 2), learned()
    for solver in ("pgd", "admm"):
        found = plug_and_play(y, forward, adjoint, prox, solver=solver, weight=weight, tol=1e-9, iterations=20000)
        inverse = prox.invert(found.x, tol=1e-10)
        assert inverse.converged.all()
        slope = weight * adjoint(forward(found.x) - y) + inverse.point - found.x
        assert slope.abs().max() < 1e-5, solver


def test_the_default_weight_is_below_the_bound() -> None:
    matrix, y, forward, adjoint = problem()
    found = plug_and_play(y, forward, adjoint, lambda v: v / 2)
    norm = float(torch.linalg.matrix_norm(matrix, 2) ** 2)
    assert found.weight * norm == pytest.approx(0.9, rel=0.01)
    assert found.objective is None


@solvers
def test_what_does_not_converge_says_so(solver: Solver) -> None:
    """A turn by 90 degrees is no proximal operator."""
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    y = torch.ones(2, 2)
    args = (y, lambda x: 1e-3 * x, lambda r: 1e-3 * r, lambda v: v @ turn)
    with pytest.raises(NotConverged, match=r"2 of 2 samples still changed by up to .* after 50 iterations"):
        plug_and_play(*args, solver=solver, weight=1.0, start=torch.ones(2, 2), iterations=50)
    found = plug_and_play(*args, solver=solver, weight=1.0, start=torch.ones(2, 2), iterations=50, check=False)
    assert found.converged.tolist() == [False, False]
    assert len(found.changes) == 50


@solvers
def test_a_denoiser_may_work_in_place(solver: Solver) -> None:
    _, y, forward, adjoint = problem()
    found = plug_and_play(y, forward, adjoint, lambda v: v.mul_(0.5), solver=solver)
    assert torch.equal(found.x, plug_and_play(y, forward, adjoint, lambda v: v * 0.5, solver=solver).x)


def test_a_denoisers_mode_is_kept() -> None:
    layer = nn.Linear(8, 8, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    net = nn.Sequential(layer, nn.Dropout(0.5))
    _, y, forward, adjoint = problem()
    found = plug_and_play(y, forward, adjoint, net)  # dropout would never converge
    assert found.converged.all()
    assert net.training
    assert not found.x.requires_grad


@pytest.mark.parametrize("wrong", ["moved", "halved"])
def test_a_wrong_adjoint_of_many_numbers_is_seen(wrong: str) -> None:
    """Of two random images the product is nearly 0, whichever way it is taken; here y is 0 besides."""
    y = torch.rand(4, 3, 256, 256)
    for measured in (y, torch.zeros_like(y)):
        with pytest.raises(ValueError, match="adjoint is not the transpose of forward"):
            plug_and_play(measured, lambda x: x, lambda r: r.roll(1, -1) if wrong == "moved" else r / 2, lambda v: v)


@solvers
def test_autocast_and_inference_mode_change_nothing(solver: Solver) -> None:
    """Half precision would keep signals from settling, and the objective from falling."""
    matrix, y, _, _ = problem()
    matrix, y, prox = matrix.float(), y.float(), learned().float()

    def solve() -> Tensor:
        found = plug_and_play(y, lambda x: x @ matrix.T, lambda r: r @ matrix, prox, solver=solver)
        assert found.objective is not None
        return found.objective

    plain = solve()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(solve(), plain)
    with torch.inference_mode():
        assert torch.equal(solve(), plain)


def test_bad_input() -> None:
    _, y, forward, adjoint = problem()
    with pytest.raises(ValueError, match="solver must be pgd or admm, got 'ista'"):
        plug_and_play(y, forward, adjoint, lambda v: v, solver="ista")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight and tol must be above 0 and iterations at least 1, got -1"):
        plug_and_play(y, forward, adjoint, lambda v: v, weight=-1.0)
    with pytest.raises(ValueError, match="descent needs a weight of at most"):
        plug_and_play(y, forward, adjoint, lambda v: v, weight=100.0)
    with pytest.raises(ValueError, match="adjoint is not the transpose of forward"):
        plug_and_play(y, forward, lambda r: adjoint(r).roll(1, 1), lambda v: v)
    with pytest.raises(ValueError, match=r"denoiser makes \(3, 1\) of signals \(3, 8\)"):
        plug_and_play(y, forward, adjoint, lambda v: v[:, :1])
    with pytest.raises(ValueError, match=r"a row for each sample; got \(5,\)"):
        plug_and_play(y[0], forward, adjoint, lambda v: v)
    with pytest.raises(TypeError, match=r"are torch\.complex128 and torch\.float64; give complex ones as their two"):
        plug_and_play(torch.fft.fft(y), torch.fft.fft, lambda r: 5 * torch.fft.ifft(r).real, lambda v: v)
    with pytest.raises(TypeError, match=r"are torch\.int64"):
        plug_and_play(torch.ones(2, 3, dtype=torch.int64), lambda x: x, lambda r: r, lambda v: v)
    with pytest.raises(ValueError, match="but the measurements are"):
        plug_and_play(y, lambda x: x, adjoint, lambda v: v)
    with pytest.raises(ValueError, match="sends signals to 0"):
        plug_and_play(y, lambda x: 0 * forward(x), lambda r: 0 * adjoint(r), lambda v: v)
