"""Smoothed propensities: weights and moments by enumeration, learning from logs, and the certificate's coverage."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.papers.bandits import Bandit, Logs, of_classes
from wellposed.rl.exponential_smoothing import (
    GaussianArgmax,
    SmoothedIPS,
    argmax_probabilities,
    off_policy_bound,
    smoothed_moments,
    smoothed_weights,
)


def laws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def world(seed: int = 0, contexts: int = 400) -> tuple[Bandit, Tensor]:
    """Four clusters, the right answer the cluster's number, and a logging policy that is right only a little more."""
    g = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(4, 5, generator=g, dtype=torch.float64)
    y = torch.randint(4, (contexts,), generator=g)
    x = centres[y] + torch.randn(contexts, 5, generator=g, dtype=torch.float64)
    return of_classes(x, y, 4), (2.0 * nn.functional.one_hot((y + 1) % 4, 4) + nn.functional.one_hot(y, 4)).softmax(-1)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_weights_by_loops(alpha: float) -> None:
    pi, logging = laws(5, 3), laws(5, 3, seed=1)
    found, clipped = smoothed_weights(pi, logging, alpha), smoothed_weights(pi, logging, alpha, clip=1.1)
    for i, a in product(range(5), range(3)):
        expected = float(pi[i, a]) / float(logging[i, a]) ** alpha
        assert found[i, a].item() == pytest.approx(expected)
        assert clipped[i, a].item() == pytest.approx(min(expected, 1.1))


@pytest.mark.parametrize(("alpha", "clip"), [(1.0, None), (0.6, None), (1.0, 1.2)])
def test_moments_by_enumerating_all_logs(alpha: float, clip: float | None) -> None:
    """Every pair of contexts and actions two rows can hold, with its probability."""
    pi, logging, cost = laws(3, 2), laws(3, 2, seed=1), -laws(3, 2, seed=2)
    bias, variance = smoothed_moments(pi, logging, cost, alpha, clip)
    term = smoothed_weights(pi, logging, alpha, clip) * cost
    cells = list(product(range(3), range(2)))
    chance = {(i, a): float(logging[i, a]) / 3 for i, a in cells}
    risk = float((pi * cost).sum() / 3)
    error = [
        (chance[one] * chance[two], float(term[one] + term[two]) / 2 - risk) for one, two in product(cells, repeat=2)
    ]
    assert float(bias) == pytest.approx(sum(p * e for p, e in error))
    assert float(bias**2 + variance / 2) == pytest.approx(sum(p * e * e for p, e in error))


def test_alpha_one_is_unbiased_and_uniform_logging_shrinks_by_a_power_of_the_actions() -> None:
    pi, cost = laws(6, 4), -laws(6, 4, seed=2)
    assert abs(smoothed_moments(pi, laws(6, 4, seed=1), cost, 1.0)[0]) < 1e-15
    risk = (pi * cost).sum(-1).mean()
    bias, _ = smoothed_moments(pi, torch.full((6, 4), 0.25, dtype=torch.float64), cost, 0.7)
    torch.testing.assert_close(bias + risk, 4 ** (0.7 - 1) * risk)


def test_loss_and_gradient() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=g, dtype=torch.float64, requires_grad=True)
    batch = {
        "action": torch.tensor([0, 1, 2, 0, 1, 2]),
        "cost": -torch.rand(6, generator=g, dtype=torch.float64),
        "propensity": torch.rand(6, generator=g, dtype=torch.float64) + 0.1,
    }
    task = SmoothedIPS(0.6)
    rows = task.loss({"logits": logits.detach()}, batch)
    for i in range(6):
        p = logits[i].detach().softmax(0)[batch["action"][i]]
        assert rows[i].item() == pytest.approx(float(p * batch["cost"][i] / batch["propensity"][i] ** 0.6))
    assert torch.autograd.gradcheck(lambda z: task.loss({"logits": z}, batch), (logits,))
    assert repr(task) == "SmoothedIPS(alpha=0.6)"
    assert repr(SmoothedIPS(1, clip=10)) == "SmoothedIPS(alpha=1, clip=10)"


@pytest.mark.parametrize("kind", ["norm", "attention"])
def test_any_network_learns_a_better_policy_than_the_one_that_logged(kind: str) -> None:
    bandit, logging = world()
    logs = bandit.logged(logging, 600, torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    if kind == "norm":
        model: nn.Module = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    else:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, 8), layer, nn.Flatten(), nn.Linear(40, 4))
    model.double()
    recipe = wp.Recipe().attach(model, SmoothedIPS(0.7))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = {"x": logs.x, "action": logs.action, "cost": logs.cost, "propensity": logs.propensity}
    for _ in range(60):
        recipe.step(batch, optimizer)
    with recipe.evaluating() as trained:
        learned = bandit.risk(trained(bandit.x).softmax(-1))
    assert learned < bandit.risk(logging) - 0.3


# ---- the certificate
def test_features_neither_train_nor_count_the_data() -> None:
    policy = GaussianArgmax(nn.BatchNorm1d(5), 5, 4, prior=torch.randn(4, 5))
    x = torch.randn(8, 5)
    torch.testing.assert_close(policy(x)[:3], policy(x[:3]))
    torch.autograd.backward(policy(x)[:, 0].sum())
    assert [name for name, p in policy.named_parameters() if p.grad is not None] == ["weight"]
    assert policy.features.training


def test_probability_of_the_largest_normal() -> None:
    """Of two: Phi((m_1 - m_2) / (s sqrt 2)); of several against many draws; of equal means 1/K."""
    mean, spread = torch.tensor([[0.3, -0.5]], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    expected = torch.special.ndtr(torch.tensor(0.8 / (0.7 * math.sqrt(2)), dtype=torch.float64))
    torch.testing.assert_close(argmax_probabilities(mean, spread).exp()[0, 0], expected, rtol=0, atol=1e-8)
    g = torch.Generator().manual_seed(0)
    mean, spread = torch.randn(5, generator=g, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    draws = mean + 0.9 * torch.randn(200_000, 5, generator=g, dtype=torch.float64)
    counts = torch.bincount(draws.argmax(-1), minlength=5) / len(draws)
    found = argmax_probabilities(mean, spread).exp()
    assert ((counts - found).abs() < 5 * (found * (1 - found) / len(draws)).sqrt()).all()
    torch.testing.assert_close(argmax_probabilities(torch.zeros(7), torch.tensor(1.0)).exp(), torch.full((7,), 1 / 7))
    assert torch.autograd.gradcheck(argmax_probabilities, (mean.requires_grad_(), spread.requires_grad_()))


def test_the_policy_is_the_argmax_of_drawn_weights() -> None:
    g = torch.Generator().manual_seed(0)
    policy = GaussianArgmax(nn.Identity(), 5, 4, sigma=0.7, prior=torch.randn(4, 5, generator=g))
    x = torch.tensor([0.2, 1.0, 5.0])[:, None] * torch.randn(3, 5, generator=g)  # the longer, the surer
    weights = policy.weight.detach() + 0.7 * torch.randn(20_000, 4, 5, generator=g)
    counts = nn.functional.one_hot((weights @ x.T).argmax(1), 4).float().mean(0)
    found = policy(x).exp().detach()
    assert ((counts - found).abs() < 5 * (found * (1 - found) / 20_000).sqrt() + 1e-5).all()


def test_half_precision_is_computed_in_single() -> None:
    policy = GaussianArgmax(nn.Identity(), 5, 4, prior=torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        rough = policy(x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.exp(), policy(x).exp(), rtol=0, atol=2**-5)
    assert policy.bfloat16()(x.bfloat16()).dtype == torch.float32


def test_far_behind_stays_finite() -> None:
    found = argmax_probabilities(torch.tensor([0.0, -50.0, 30.0]), torch.tensor(0.1))
    assert found.isfinite().all()
    assert found.exp()[2] == 1


def test_kl_is_that_of_gaussians() -> None:
    policy = GaussianArgmax(nn.Identity(), 3, 2, sigma=0.5, prior=torch.ones(2, 3))
    assert policy.kl() == 0
    with torch.no_grad():
        policy.weight.add_(0.2)
    law, prior = (torch.distributions.Normal(w, 0.5) for w in (policy.weight, policy.prior))
    torch.testing.assert_close(policy.kl(), torch.distributions.kl_divergence(law, prior).sum())


def bound_by_loops(pi: Tensor, logs: Logs, kl: float, alpha: float, scale: float, delta: float) -> tuple[float, float]:
    n = len(logs.cost)
    estimate = mass = second = 0.0
    for i in range(n):
        a, p0 = int(logs.action[i]), logs.logging[i]
        estimate += float(pi[i, a] / p0[a] ** alpha * logs.cost[i]) / n
        mass += float((pi[i] * p0 ** (1 - alpha)).sum()) / n
        second += sum(float(p0[b] * pi[i, b] / p0[b] ** (2 * alpha)) for b in range(len(p0))) / n
        second += float(pi[i, a] * logs.cost[i] ** 2 / p0[a] ** (2 * alpha)) / n
    kl1, kl2 = kl + math.log(4 * math.sqrt(n) / delta), kl + math.log(4 / delta)
    return estimate, math.sqrt(kl1 / (2 * n)) + 1 - mass + kl2 / (n * scale) + scale / 2 * second


def test_bound_by_loops() -> None:
    bandit, logging = world()
    logs = bandit.logged(logging, 50, torch.Generator().manual_seed(0))
    pi = laws(50, 4)
    found = off_policy_bound(pi, logs.logging, logs.action, logs.cost, 1.5, alpha=0.8, scale=0.2, delta=0.1)
    estimate, width = bound_by_loops(pi, logs, 1.5, 0.8, 0.2, 0.1)
    assert found.estimate.item() == pytest.approx(estimate)
    assert found.width.item() == pytest.approx(width)
    assert found.risk.item() == pytest.approx(estimate + width)


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_a_policy_trained_on_its_certificate_keeps_it(alpha: float) -> None:
    """The bound holds for whatever policy the data led to, and says that it earns something."""
    for seed in range(2):
        bandit, logging = world(seed)
        logs = bandit.logged(logging, 20_000, torch.Generator().manual_seed(seed))
        policy = GaussianArgmax(nn.Identity(), 5, 4, sigma=0.5).double()
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
        for step in range(40):
            rows = torch.arange(step, 20_000, 200)
            bound = off_policy_bound(
                policy(logs.x[rows]).exp(), logs.logging[rows], logs.action[rows], logs.cost[rows], policy.kl(),
                alpha=alpha, rows=20_000,
            )  # fmt: skip
            optimizer.zero_grad()
            torch.autograd.backward(bound.risk)
            optimizer.step()
        with torch.no_grad():
            learned = policy(bandit.x).exp()
            found = off_policy_bound(learned[logs.row], logs.logging, logs.action, logs.cost, policy.kl(), alpha=alpha)
            risk = bandit.risk(learned)
        assert abs(risk - found.estimate) <= found.width
        assert found.risk < 0
        assert risk < bandit.risk(logging) - 0.1


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: SmoothedIPS(1.5), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: SmoothedIPS(0.5, clip=0), "clip must be above 0"),
        (lambda: GaussianArgmax(nn.Identity(), 3, 2, sigma=0), "sigma must be above 0"),
        (lambda: GaussianArgmax(nn.Identity(), 3, 2, prior=torch.zeros(3, 2)), r"the prior \(2, 3\)"),
    ],
)
def test_bad_settings(call: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        call()


def test_what_no_bound_is_for() -> None:
    pi, action = laws(3, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="turn rewards round"):
        off_policy_bound(pi, pi, action, torch.full((3,), math.nan), 0.0)
    with pytest.raises(ValueError, match=r"cost is a number for each of 3 rows, got shape \(3, 1\)"):
        off_policy_bound(pi, pi, action, -torch.ones(3, 1), 0.0)
    column = {"action": action, "cost": -torch.ones(3), "propensity": torch.ones(3, 1)}
    with pytest.raises(ValueError, match="propensity is a number for each of 3 rows"):
        SmoothedIPS().loss({"logits": pi}, column)
    with pytest.raises(ValueError, match="turn rewards round"):
        off_policy_bound(pi, pi, action, torch.ones(3), 0.0)
    with pytest.raises(ValueError, match=r"delta in \(0, 1\)"):
        off_policy_bound(pi, pi, action, -torch.ones(3), 0.0, delta=0.0)
