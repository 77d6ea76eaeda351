"""The conservation update, its operators and its layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.science.conservation import (
    ConservationLayer,
    conservation_update,
    second_difference_operator,
    smoothing_update,
    trapezoid_operator,
)

N, M = 9, 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean (3, N), covariance (3, N, N) far from diagonal, rows (M, N) and their values (3, M)."""
    root = draw(3, N, N, seed=1)
    return draw(3, N), root @ root.mT + 0.1 * torch.eye(N), draw(M, N, seed=2), draw(3, M, seed=3)


def test_equals_the_lagrange_conditions() -> None:
    """Without noise: the minimum of (u - mean)^T Sigma^-1 (u - mean) subject to G u = b, from its KKT system."""
    mean, cov, G, b = problem()
    found, after = conservation_update(mean, cov, G, b)
    for i in range(3):
        precision = torch.linalg.inv(cov[i])
        kkt = torch.cat([torch.cat([precision, G.T], 1), torch.cat([G, torch.zeros(M, M)], 1)])
        inverse = torch.linalg.inv(kkt)
        expected = (inverse @ torch.cat([precision @ mean[i], b[i]]))[:N]
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(after[i], inverse[:N, :N], rtol=0, atol=1e-10)
    torch.testing.assert_close(found @ G.T, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.3, torch.tensor([0.1, 2.0], dtype=torch.float64)])
def test_with_noise_it_is_the_posterior(sigma: float | Tensor) -> None:
    """The minimum of the penalised problem, from its normal equations; its inverse Hessian is the covariance."""
    mean, cov, G, b = problem()
    found, after = conservation_update(mean, cov, G, b, sigma)
    weight = torch.as_tensor(sigma, dtype=torch.float64).expand(M) ** -2
    for i in range(3):
        hessian = torch.linalg.inv(cov[i]) + G.T * weight @ G
        expected = torch.linalg.solve(hessian, torch.linalg.inv(cov[i]) @ mean[i] + G.T @ (weight * b[i]))
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(after[i], torch.linalg.inv(hessian), rtol=0, atol=1e-10)


def test_pythagoras_in_the_metric_of_the_inverse_covariance() -> None:
    """|u - mean|^2 = |u - new|^2 + |new - mean|^2 for every u that satisfies the law: its error never rises."""
    mean, cov, G, _ = problem()
    truth = draw(3, N, seed=4)
    found, _ = conservation_update(mean, cov, G, truth @ G.T)
    precision = torch.linalg.inv(cov)

    def squared(d: Tensor) -> Tensor:
        return torch.einsum("bi,bij,bj->b", d, precision, d)

    torch.testing.assert_close(squared(truth - mean), squared(truth - found) + squared(found - mean), rtol=1e-9, atol=0)


def test_equal_variances_never_raise_the_squared_error() -> None:
    mean, _, G, _ = problem()
    truth = draw(3, N, seed=4)
    found, _ = conservation_update(mean, torch.full_like(mean, 0.7), G, truth @ G.T)
    assert ((found - truth).square().sum(1) < (mean - truth).square().sum(1)).all()


def test_variances_are_a_diagonal_covariance() -> None:
    mean, _, G, b = problem()
    variances = draw(3, N, seed=5).square() + 0.1
    for sigma in (0.0, 0.5):
        thin, full = (conservation_update(mean, c, G, b, sigma) for c in (variances, torch.diag_embed(variances)))
        torch.testing.assert_close(thin[0], full[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(thin[1], full[1].diagonal(dim1=-2, dim2=-1), rtol=0, atol=1e-12)


def test_order_of_the_laws_does_not_matter() -> None:
    """One set of rows after the other is both at once, and an exact law survives what comes later."""
    mean, cov, G, b = problem()
    D = second_difference_operator(N, dtype=torch.float64)
    first = conservation_update(*conservation_update(mean, cov, G, b), D, 0.0, 0.4)
    last = conservation_update(*conservation_update(mean, cov, D, 0.0, 0.4), G, b)
    sigma = torch.tensor([0.0] * M + [0.4] * (N - 2), dtype=torch.float64)
    both = conservation_update(mean, cov, torch.cat([G, D]), torch.cat([b, torch.zeros(3, N - 2)], 1), sigma)
    for found in (first, last):
        torch.testing.assert_close(found[0], both[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(found[1], both[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(first[0] @ G.T, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_gradients(sigma: float) -> None:
    mean, cov, G, b = (t[:2].requires_grad_() if t.ndim > 1 and len(t) == 3 else t.requires_grad_() for t in problem())
    assert torch.autograd.gradcheck(lambda m, c, g, v: conservation_update(m, c @ c.mT, g, v, sigma), (mean, cov, G, b))
    variances = torch.rand(2, N, dtype=torch.float64).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, c: conservation_update(m, c, G.detach(), 1.0, sigma), (mean, variances))
    assert torch.autograd.gradcheck(smoothing_update, (mean, variances))


def test_broadcasts() -> None:
    mean, cov, G, b = problem()
    shared, _ = conservation_update(mean, cov[:1], G, 1.0)
    apart = torch.stack([conservation_update(m, cov[0], G, torch.ones(M))[0] for m in mean])
    torch.testing.assert_close(shared, apart, rtol=0, atol=1e-12)
    a_row_each, _ = conservation_update(mean, cov, torch.stack([G, 2 * G, G]), b)
    torch.testing.assert_close(a_row_each[0], conservation_update(mean[0], cov[0], G, b[0])[0], rtol=0, atol=1e-12)


# ---- operators
def test_trapezoid_rows() -> None:
    x = torch.tensor([0.0, 0.1, 0.5, 1.3], dtype=torch.float64)
    y = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    u = draw(4, 3)
    torch.testing.assert_close(trapezoid_operator(x) @ u, torch.trapezoid(u, x, dim=0)[None], rtol=0, atol=1e-14)
    twice = torch.trapezoid(torch.trapezoid(u, y, dim=1), x, dim=0)
    torch.testing.assert_close(trapezoid_operator(x, y) @ u.flatten(), twice[None], rtol=0, atol=1e-14)
    per_time = trapezoid_operator(y, times=4) @ u.flatten()
    torch.testing.assert_close(per_time, torch.trapezoid(u, y, dim=1), rtol=0, atol=1e-14)


def test_second_differences() -> None:
    u = draw(4, 5)
    along_rows, along_columns = u.diff(n=2, dim=0).flatten(), u.diff(n=2, dim=1).flatten()
    found = second_difference_operator(4, 5, dtype=torch.float64) @ u.flatten()
    torch.testing.assert_close(found, torch.cat([along_rows, along_columns]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("full", [False, True])
def test_smoothing_after_values_were_fixed(full: bool) -> None:
    """What an exact law leaves of a variance is 0, by rounding hardly less; those points stay, and nothing is NaN."""
    root = draw(40, 20, 20, seed=5).float()
    cov = root @ root.mT / 20 if full else root[:, 0].square() + 0.1
    G = torch.eye(20)[[0, 1, 2, 3, 19]]
    fixed, left = conservation_update(draw(40, 20).float(), cov, G, 1.0)
    if not full:
        assert left.min() == 0
    smooth, _ = smoothing_update(fixed, left)
    torch.testing.assert_close(smooth @ G.T, torch.ones(40, 5), rtol=0, atol=1e-4)


def test_smoothing_beside_known_points_has_a_gradient() -> None:
    variances = torch.ones(20)
    variances[:4] = 0
    variances.requires_grad_()
    found, cov = smoothing_update(draw(20).float(), variances)
    (g,) = torch.autograd.grad(found.sum() + cov.sum(), variances)
    assert found.isfinite().all()
    assert g.isfinite().all()


def test_smoothing_by_the_variance_of_a_second_difference() -> None:
    mean, variances = draw(2, N), draw(2, N, seed=5).square() + 0.1
    found, cov = smoothing_update(mean, variances, 0.6)
    D = second_difference_operator(N, dtype=torch.float64)
    for i in range(2):
        sd = variances[i].sqrt()
        decay = torch.tensor([[0.6 ** abs(j - k) for k in range(N)] for j in range(N)], dtype=torch.float64)
        noise = torch.stack([row @ (torch.outer(sd, sd) * decay) @ row for row in D])
        hessian = torch.diag(1 / variances[i]) + D.T / noise @ D
        torch.testing.assert_close(found[i], torch.linalg.solve(hessian, mean[i] / variances[i]), rtol=0, atol=1e-12)
        torch.testing.assert_close(cov[i], torch.linalg.inv(hessian), rtol=0, atol=1e-12)
    half, _ = smoothing_update(mean.bfloat16(), variances.bfloat16(), 0.6)
    wide, _ = smoothing_update(mean.bfloat16().float(), variances.bfloat16().float(), 0.6)
    torch.testing.assert_close(half, wide, rtol=0, atol=1e-6)
    full, _ = smoothing_update(mean, torch.diag_embed(variances), 0.6)
    torch.testing.assert_close(full, found, rtol=0, atol=1e-12)
    assert (found @ D.T).square().sum() < (mean @ D.T).square().sum()
    line = torch.linspace(1, 3, N, dtype=torch.float64)[None]
    torch.testing.assert_close(smoothing_update(line, variances[:1])[0], line, rtol=0, atol=1e-12)


# ---- the layer
GRID = torch.linspace(0, 1, 12)


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Tanh(), nn.Conv1d(4, 1, 3, padding=1), nn.Flatten()
    )


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(2, (12, 1)), nn.Flatten(1, 2), nn.Linear(1, 8), layer, nn.Linear(8, 1), nn.Flatten()
    )


@pytest.mark.parametrize("build", [conv, transformer])
@pytest.mark.parametrize("correlation", [None, 0.5])
def test_any_model_keeps_its_mass_while_it_learns(build: type, correlation: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(build(), ConservationLayer(trapezoid_operator(GRID), 1.0, correlation=correlation))
    target = 1 + torch.sin(2 * torch.pi * GRID)
    recipe = wp.Recipe().attach(model, wp.Regress())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = {"x": torch.randn(6, 1, 12), "y": target.expand(6, 12)}
    losses = [recipe.step(batch, optimizer)["task"] for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    torch.testing.assert_close(torch.trapezoid(model(batch["x"]), GRID), torch.ones(6), rtol=0, atol=1e-6)
    assert sorted(ConservationLayer(torch.ones(1, 3), 1.0).state_dict()) == ["G", "b"]


def test_layer_gives_back_what_it_was_given() -> None:
    G = trapezoid_operator(GRID.double())
    mean, variances = draw(4, 12), draw(4, 12, seed=1).square() + 0.1
    layer = ConservationLayer(G)
    equal = layer(mean, torch.ones(4, 1))
    expected, _ = conservation_update(mean, torch.ones_like(mean), G, 1.0)
    torch.testing.assert_close(equal, expected, rtol=0, atol=1e-12)
    for correlation in (None, 0.5):
        layer.correlation = correlation
        thin, full = layer((mean, variances), 1.0), layer((mean, torch.diag_embed(variances)), 1.0)
        assert thin[1].shape == (4, 12)
        assert full[1].shape == (4, 12, 12)
        torch.testing.assert_close(thin[0], full[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(thin[1], full[1].diagonal(dim1=-2, dim2=-1), rtol=0, atol=1e-12)


def test_a_layer_of_whole_rows_holds_any_total() -> None:
    found = ConservationLayer(torch.ones(1, 5, dtype=torch.long), 0.5)(draw(3, 5).float())
    torch.testing.assert_close(found.sum(1), torch.full((3,), 0.5), rtol=0, atol=1e-6)


def test_half_precision_keeps_the_law() -> None:
    layer = ConservationLayer(trapezoid_operator(GRID), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(draw(4, 12).bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(torch.trapezoid(found, GRID), torch.ones(4), rtol=0, atol=1e-6)


def test_as_many_laws_as_points_leave_nothing_open() -> None:
    mean, cov, _, _ = problem()
    G, b = draw(3, N, N, seed=6), draw(3, N, seed=7)
    for uncertain in (cov, torch.ones_like(mean)):
        found, left = conservation_update(mean, uncertain, G, b)
        torch.testing.assert_close(found, torch.linalg.solve(G, b), rtol=1e-6, atol=1e-6)
        assert left.abs().max() < 1e-8


def test_bad_input() -> None:
    mean, cov, G, b = problem()
    with pytest.raises(ValueError, match=r"its variances, or \(..., n, n\).*got \(9, 9\) for \(3, 9\)"):
        conservation_update(mean, cov[0], G, b)
    with pytest.raises(ValueError, match=r"G holds rows \(m, 9\).*got \(2, 8\)"):
        conservation_update(mean, cov, G[:, 1:], b)
    with pytest.raises(ValueError, match=r"b is a number or has one entry per row of G, \(..., 2\); got \(3,\)"):
        conservation_update(mean, cov, G, b[:, 0])
    with pytest.raises(ValueError, match="sigma is a standard deviation, at least 0; got -1"):
        conservation_update(mean, cov, G, b, -1.0)
    with pytest.raises(ValueError, match=r"correlation of neighbours is in \[0, 1\), got 1"):
        smoothing_update(mean, cov, 1.0)
    with pytest.raises(ValueError, match="at least 3 points"):
        second_difference_operator(2)
    with pytest.raises(ValueError, match="at least 2 points"):
        trapezoid_operator(torch.ones(1))
    with pytest.raises(ValueError, match="at least one axis"):
        trapezoid_operator()
    with pytest.raises(ValueError, match=r"G holds rows \(m, n\), got \(9,\)"):
        ConservationLayer(G[0])
    with pytest.raises(ValueError, match="what is conserved"):
        ConservationLayer(G)(mean)


def test_a_law_said_twice_is_nan_without_noise_and_said_once_with_it() -> None:
    mean, cov, G, b = problem()
    twice, values = torch.cat([G[:1], G[:1]]), torch.cat([b[:, :1], b[:, :1]], 1)
    assert conservation_update(mean, torch.ones_like(mean), torch.ones(2, N), 1.0)[0].isnan().all()
    found, _ = conservation_update(mean, cov, twice, values, 0.2)
    once, _ = conservation_update(mean, cov, G[:1], b[:, :1], 0.2 / 2**0.5)
    torch.testing.assert_close(found, once, rtol=0, atol=1e-10)
