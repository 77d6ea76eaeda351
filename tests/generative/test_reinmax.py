"""ReinMax and its relatives: against the published construction, and against the exact gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed.generative.reinmax import (
    estimator_bias,
    gumbel_straight_through,
    reinmax,
    sample_one_hot,
    straight_through_sample,
)

ESTIMATORS: list[Any] = [reinmax, straight_through_sample, gumbel_straight_through]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(output: Tensor, logits: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad((output * of).sum(), logits, retain_graph=True)
    return found


@pytest.mark.parametrize("tau", [1.0, 1.3])
def test_backward_is_the_papers_algorithm(tau: float) -> None:
    """Written with stopped gradients, as published: pi1 is re-made a softmax of the logits."""
    logits, of = draw(7, 4).requires_grad_(), draw(7, 4, seed=1)
    sample = sample_one_hot(logits, torch.Generator().manual_seed(0))
    pi0 = logits.softmax(-1)
    pi1 = (sample + (logits / tau).softmax(-1)).detach() / 2
    pi1 = ((pi1.log() - logits).detach() + logits).softmax(-1)
    pi2 = 2 * pi1 - pi0 / 2
    output, probs = reinmax(logits, tau, sample=sample)
    assert torch.equal(output, sample)
    torch.testing.assert_close(gradient(output, logits, of), gradient(pi2, logits, of), rtol=0, atol=1e-15)
    torch.testing.assert_close(gradient(probs, logits, of), gradient(pi0, logits, of), rtol=0, atol=0)


@pytest.mark.parametrize("tau", [1.0, 0.7])
def test_straight_through_has_the_gradient_of_softmax(tau: float) -> None:
    logits, of = draw(7, 4).requires_grad_(), draw(7, 4, seed=1)
    output, _ = straight_through_sample(logits, tau)
    torch.testing.assert_close(
        gradient(output, logits, of), gradient((logits / tau).softmax(-1), logits, of), rtol=0, atol=0
    )


def quadratic(a: Tensor, b: Tensor) -> Any:
    return lambda d: (d @ a * d).sum(-1) + d @ b


@pytest.mark.parametrize("seed", range(5))
def test_exact_for_quadratics(seed: int) -> None:
    """The paper's theorem: second order, so a quadratic has no bias. Straight-through: first order, linear only."""
    logits = draw(5, seed=seed)
    f = quadratic(draw(5, 5, seed=seed + 10), draw(5, seed=seed + 20))
    assert estimator_bias(reinmax, f, logits).relative < 1e-12
    assert estimator_bias(straight_through_sample, f, logits).relative > 0.01
    assert estimator_bias(partial(reinmax, tau=1.3), f, logits).relative > 1e-3

    def linear(d: Tensor) -> Tensor:
        return d @ draw(5, seed=seed + 20)

    assert estimator_bias(straight_through_sample, linear, logits).relative < 1e-12
    assert estimator_bias(reinmax, linear, logits).relative < 1e-12


def test_exact_for_quadratics_of_each_of_several_variables() -> None:
    """Where variables only add up, each has its own quadratic; a product of theirs is beyond both estimators."""
    logits, w = draw(3, 4), draw(3, 4, seed=1)

    def apart(d: Tensor) -> Tensor:
        return (d * w).sum(-1).square().sum(-1)

    def together(d: Tensor) -> Tensor:
        return (d * w).sum(-1).prod(-1)  # linear in each: exact, given the others

    assert estimator_bias(reinmax, apart, logits).relative < 1e-12
    assert estimator_bias(straight_through_sample, apart, logits).relative > 0.01
    assert estimator_bias(reinmax, together, logits).relative < 1e-12


def test_bias_report_by_explicit_loops() -> None:
    logits, w = draw(3), draw(3, seed=1)

    def f(d: Tensor) -> Tensor:
        return nn.functional.softplus(2 * d @ w)

    p, eye = logits.softmax(-1), torch.eye(3, dtype=torch.float64)
    exact = [sum(p[i] * (float(i == k) - p[k]) * f(eye[i]) for i in range(3)) for k in range(3)]
    slopes = [torch.sigmoid(2 * w[i]) * 2 * w for i in range(3)]  # of f at the i-th corner
    expected = [sum(p[i] * sum(p[k] * (float(j == k) - p[j]) * slopes[i][j] for j in range(3)) for i in range(3))
                for k in range(3)]  # fmt: skip
    report = estimator_bias(straight_through_sample, f, logits)
    torch.testing.assert_close(report.exact, torch.stack(exact), rtol=0, atol=1e-15)  # type: ignore[arg-type]
    torch.testing.assert_close(report.expected, torch.stack(expected), rtol=0, atol=1e-15)  # type: ignore[arg-type]
    difference = torch.stack(expected) - torch.stack(exact)  # type: ignore[arg-type]
    assert report.relative == pytest.approx(float(difference.norm() / report.exact.norm()))


def test_gumbel_noise_given_the_sample_is_gumbel_noise() -> None:
    """Draw D first and the noise given D: the relaxation has the law of plain Gumbel noise, and D its largest entry."""
    logits = draw(3).expand(100_000, 3)
    g = torch.Generator().manual_seed(0)
    theta = logits.clone().requires_grad_()
    output, _ = gumbel_straight_through(theta, 0.5, generator=g)
    given = gradient(output, theta, torch.tensor([1.0, 2.0, 4.0]).double()).mean(0)

    free = logits.clone().requires_grad_()
    noise = -torch.empty_like(logits).exponential_(generator=g).log()
    relaxed = ((free + noise) / 0.5).softmax(-1)
    values = gradient(relaxed, free, torch.tensor([1.0, 2.0, 4.0]).double())
    error = values.std(0) * (2 / len(values)) ** 0.5  # of the difference of two means
    assert ((given - values.mean(0)).abs() < 5 * error).all()
    agrees = (free + noise).argmax(-1).bincount(minlength=3) / len(values)
    torch.testing.assert_close(agrees.double(), logits[0].softmax(-1), rtol=0, atol=5 * 0.5 / len(values) ** 0.5)


def test_gumbel_bias_vanishes_with_the_temperature() -> None:
    logits, w, g = draw(4), draw(4, seed=2), torch.Generator().manual_seed(0)

    def linear(d: Tensor) -> Tensor:
        return d @ w

    warm, cold = (
        estimator_bias(partial(gumbel_straight_through, tau=tau), linear, logits, draws=5000, generator=g).relative
        for tau in (2.0, 0.1)
    )
    assert warm > 0.3
    assert cold < 0.25 * warm


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_draws_follow_the_probabilities_and_the_generator(estimator: Any) -> None:
    logits = torch.tensor([0.3, -1.0, 1.2]).expand(20_000, 3)
    one, probs = estimator(logits, generator=torch.Generator().manual_seed(0))
    two, _ = estimator(logits, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one, two)
    assert torch.equal(one.sum(-1), torch.ones(20_000))
    assert ((one == 0) | (one == 1)).all()
    torch.testing.assert_close(one.mean(0), probs[0], rtol=0, atol=5 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_categories_and_half_precision(estimator: Any, dtype: torch.dtype) -> None:
    logits = draw(50, 4).to(dtype)
    logits[:, 2] = -torch.inf
    logits[:, 3] = -40.0  # a probability of 0 in half precision
    logits.requires_grad_()
    output, probs = estimator(logits, generator=torch.Generator().manual_seed(0))
    assert output.dtype == probs.dtype == dtype
    assert (output[:, 2] == 0).all()
    slope = gradient(output, logits, torch.arange(4))
    assert slope.isfinite().all()
    assert (slope[:, 2] == 0).all()
    assert (slope[:, :2] != 0).any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_trains_through_a_discrete_code(estimator: Any) -> None:
    """Conv net with BatchNorm, transformer: three variables of four categories carry the class through."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12))
    attention = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Flatten(), nn.Linear(64, 12)
    )
    y = torch.arange(24) % 3
    x = torch.randn(24, 8, 8) + 2 * nn.functional.one_hot(y, 8)[:, None]
    for encoder, given in ((conv, x[:, None]), (attention, x)):
        head = nn.Linear(12, 3)
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=0.01)
        losses = []
        for _ in range(60):
            code, _ = estimator(encoder(given).view(24, 3, 4))
            loss = nn.functional.cross_entropy(head(code.flatten(1)), y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_bad_input() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"reinmax: tau must be at least 1, got 0\.5"):
        reinmax(logits, 0.5)
    for estimator in (straight_through_sample, gumbel_straight_through):
        with pytest.raises(ValueError, match="tau must be above 0, got 0"):
            estimator(logits, 0.0)
    with pytest.raises(ValueError, match="one-hot like the logits"):
        reinmax(logits, sample=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="outcomes are too many"):
        estimator_bias(reinmax, lambda d: d.sum((1, 2)), torch.zeros(30, 2))
    with pytest.raises(ValueError, match="one value a sample, 3"):
        estimator_bias(reinmax, lambda d: d, torch.zeros(3))
