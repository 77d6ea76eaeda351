"""Cauchy-Schwarz divergences and the two methods made of them."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.information.cs_ib import (
    CSBottleneck,
    CSRegression,
    conditional_cs_divergence,
    cs_divergence,
    cs_information,
)
from wellposed.parts.divergences import gaussian_cauchy_schwarz


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def k(a: Tensor, b: Tensor, s: float) -> float:
    return math.exp(-float((a - b).square().sum()) / (2 * s**2))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


X, T, S = rand(5, 2), rand(5, 3, seed=1), 0.8


@pytest.mark.parametrize("unbiased", [False, True])
def test_divergence_by_loops(unbiased: bool) -> None:
    y = rand(4, 2, seed=1)
    own = [
        mean([k(a, b, S) for i, a in enumerate(v) for j, b in enumerate(v) if i != j or not unbiased]) for v in (X, y)
    ]
    cross = mean([k(a, b, S) for a in X for b in y])
    expected = math.log(own[0] * own[1] / cross**2)
    assert float(cs_divergence(X, y, S, unbiased)) == pytest.approx(expected, rel=1e-10)


def test_information_by_loops() -> None:
    n = range(5)
    together = mean([k(X[i], X[j], S) * k(T[i], T[j], S) for i in n for j in n])
    apart = mean([k(X[i], X[j], S) for i in n for j in n]) * mean([k(T[i], T[j], S) for i in n for j in n])
    half = mean([mean([k(X[i], X[j], S) for j in n]) * mean([k(T[i], T[j], S) for j in n]) for i in n])
    assert float(cs_information(X, T, S)) == pytest.approx(math.log(together * apart / half**2), rel=1e-10)


def test_unbiased_information_by_loops() -> None:
    """Means over two, four and three different rows."""
    n = range(5)
    together = mean([k(X[i], X[j], S) * k(T[i], T[j], S) for i, j in permutations(n, 2)])
    apart = mean([k(X[i], X[j], S) * k(T[a], T[b], S) for i, j, a, b in permutations(n, 4)])
    half = mean([k(X[i], X[j], S) * k(T[i], T[a], S) for i, j, a in permutations(n, 3)])
    expected = math.log(together * apart / half**2)
    assert float(cs_information(X, T, S, unbiased=True)) == pytest.approx(expected, rel=1e-10)


def test_conditional_divergence_by_loops() -> None:
    y, guess, s, n = rand(5, seed=2), rand(5, seed=3), 0.7, range(5)

    def total(a: Tensor, b: Tensor) -> float:
        weights = [sum(k(X[j], X[i], S) for i in n) ** 2 for j in n]
        return sum(k(X[j], X[i], S) * k(a[j], b[i], s) / weights[j] for i in n for j in n)

    expected = math.log(total(y, y)) + math.log(total(guess, guess)) - 2 * math.log(total(guess, y))
    assert float(conditional_cs_divergence(X, y, guess, s, S)) == pytest.approx(expected, rel=1e-10)
    assert conditional_cs_divergence(X, y, y).abs() < 1e-12


def test_gradients() -> None:
    y, guess = rand(5, seed=2).requires_grad_(), rand(5, seed=3).requires_grad_()
    x, t = X.clone().requires_grad_(), T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, c: conditional_cs_divergence(a, b, c, 0.7, 0.8), (x, y, guess))
    assert torch.autograd.gradcheck(lambda a, b: cs_information(a, b, 0.8, normalised=True), (x, t))
    assert torch.autograd.gradcheck(lambda a, b: cs_information(a, b, 0.8, unbiased=True), (x, t))
    assert torch.autograd.gradcheck(lambda a, b: cs_divergence(a, b[:, :2], 0.8, True), (x, t))


def test_far_predictions_keep_a_gradient() -> None:
    guess = (rand(5).float() + 100).requires_grad_()
    conditional_cs_divergence(X.float(), rand(5, seed=1).float(), guess).backward()  # type: ignore[no-untyped-call]
    assert guess.grad is not None
    assert guess.grad.isfinite().all()
    assert guess.grad.sum() > 1  # moving all of them down lowers it


def test_closed_form_of_gaussians() -> None:
    """Unbiased potentials, averaged over draws, against the Gaussians smoothed by the kernels."""
    rho, s, eye = 0.9, 0.8, torch.eye(2, dtype=torch.float64)
    cov = eye * (1 + s**2 / 2) + rho * (1 - eye)
    zero = torch.zeros(2, dtype=torch.float64)
    truth = float(gaussian_cauchy_schwarz(zero, cov, zero, eye * (1 + s**2 / 2)))
    found = []
    for seed in range(20):
        x, noise = rand(2, 200, 1, seed=seed)
        found.append(float(cs_information(x, rho * x + math.sqrt(1 - rho**2) * noise, s, unbiased=True)))
    values = torch.tensor(found)
    assert float(values.mean()) == pytest.approx(truth, abs=4 * float(values.std()) / math.sqrt(20))


def test_limits() -> None:
    """The same rows: 0; a bijection that keeps distances: 1; a constant code: 0, with a finite gradient."""
    assert cs_divergence(X, X).abs() < 1e-12
    turned, _ = torch.linalg.qr(rand(2, 2))
    assert float(cs_information(X, X @ turned + 3, S, normalised=True)) == pytest.approx(1, rel=1e-9)
    code = torch.ones(5, 2, dtype=torch.float64, requires_grad=True)
    value = cs_information(X, code, S, normalised=True)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.abs() < 1e-4
    assert code.grad is not None
    assert code.grad.isfinite().all()
    assert 0 < cs_information(X, T, normalised=True) < 1


@pytest.mark.parametrize("spread", [1e-3, 1e-2])
def test_a_code_that_hardly_varies(spread: float) -> None:
    """In float32, too: logarithms of sums that agree to many digits, one divided by the other."""
    found = []
    for dtype in (torch.float32, torch.float64):
        code = (spread * rand(64, 3, seed=1)).to(dtype).requires_grad_()
        value = cs_information(rand(64, 5).to(dtype), code, 1.0, normalised=True)
        value.backward()  # type: ignore[no-untyped-call]
        assert code.grad is not None
        found.append((float(value.detach()), float(code.grad.norm())))
    assert found[0] == pytest.approx(found[1], rel=0.01)


def test_normalised_information_is_no_cosine() -> None:
    """Two rows, far apart in x and near in t: 1 over the root of log 2."""
    x, t = torch.tensor([[0.0], [50.0]]).double(), torch.tensor([[0.0], [0.1]]).double()
    assert float(cs_information(x, t, 1.0, normalised=True)) == pytest.approx(1 / math.sqrt(math.log(2)), rel=0.01)


def test_as_methods() -> None:
    """The recipe's terms are the functions' values; images through a net with batch norm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)
    ).double()  # fmt: skip
    recipe = wp.Recipe(CSRegression(x_scale=None), CSBottleneck(layer="2", strength=0.5, scale=None))
    recipe.attach(model, wp.Regress())
    batch = {"x": rand(12, 1, 6, 6), "y": rand(12, seed=1)}
    features = model[:3](batch["x"]).flatten(1)
    expected = conditional_cs_divergence(batch["x"], batch["y"], model(batch["x"]))
    terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1))
    torch.testing.assert_close(terms["task"], expected.detach())
    information = cs_information(batch["x"].flatten(1), features, normalised=True)
    torch.testing.assert_close(terms["CSBottleneck"], 0.5 * information.detach())


def test_wrong_targets_pull_less() -> None:
    """Two lines of targets, one of them a tenth of the rows and far off: the fit follows the other."""
    x = torch.linspace(-1, 1, 100)[:, None]
    y = torch.where(torch.arange(100) % 10 == 0, 20.0, x[:, 0])
    bias = {}
    for name, methods in (("cs", [CSRegression()]), ("squared", [])):
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        recipe = wp.Recipe(*methods).attach(model, wp.Regress())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(150):
            recipe.step({"x": x, "y": y}, optimizer)
        bias[name] = abs(float(model.bias.detach()))
    assert bias["cs"] < 0.1
    assert bias["squared"] > 1


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="pairs, row by row, at least 4; got 3 and 3 rows"):
        cs_information(X[:3], T[:3], unbiased=True)
    with pytest.raises(ValueError, match="at least 2 rows in each sample, got 1 and 5"):
        cs_divergence(X[:1], X, 1.0, unbiased=True)
    with pytest.raises(ValueError, match="scale of a kernel must be above 0, got 0"):
        cs_divergence(X, X, 0.0)
