"""Comp-sum losses: members of the family, the gradient law, the bound and its tightness, the adversarial form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, problem, rows, slope
from torch import Tensor

import wellposed as wp
from wellposed.objectives.comp_sum import (
    CompSum,
    GeneralizedCrossEntropy,
    MeanAbsoluteError,
    adversarial_comp_sum_loss,
    comp_sum_loss,
    h_consistency_bound,
)

TAUS = [0.0, 0.5, 1.0, 1.5, 1.7, 2.0, 2.5]


@pytest.mark.parametrize("tau", TAUS)
def test_definition_by_margins(tau: float) -> None:
    """Phi_tau of the sum over wrong classes of exp(h_j - h_y)."""
    logits, y, _ = rows()
    for row, c, found in zip(logits.tolist(), y.tolist(), comp_sum_loss(logits, y, tau).tolist(), strict=True):
        u = sum(math.exp(h - row[c]) for j, h in enumerate(row) if j != c)
        expected = math.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
        assert found == pytest.approx(expected, rel=1e-12)


def test_members() -> None:
    logits, y, _ = rows()
    p = F.softmax(logits, -1).gather(-1, y[:, None])[:, 0]
    assert torch.equal(comp_sum_loss(logits, y, 1.0), F.cross_entropy(logits, y, reduction="none"))
    assert torch.allclose(comp_sum_loss(logits, y, 2.0), 1 - p)
    assert torch.allclose(comp_sum_loss(logits, y, 1.7), (1 - p**0.7) / 0.7)
    assert torch.allclose(comp_sum_loss(logits, y, 0.0), 1 / p - 1)


@pytest.mark.parametrize("tau", TAUS)
def test_gradient_is_a_power_of_p_times_cross_entropys(tau: float) -> None:
    logits, y, soft = rows()
    ce = F.cross_entropy(logits, y, reduction="none")
    expected = (-(tau - 1) * ce).exp()[:, None] * slope(ce, logits)
    assert torch.allclose(slope(comp_sum_loss(logits, y, tau), logits), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda f: comp_sum_loss(f, y, tau), logits)
    assert torch.autograd.gradcheck(lambda f: comp_sum_loss(f, soft, tau), logits)


def test_near_tau_1_in_float32() -> None:
    logits, y, _ = rows()
    ce = F.cross_entropy(logits.float(), y, reduction="none")
    for gap in (1e-3, 1e-5, 1e-7, 1e-9):
        assert torch.allclose(comp_sum_loss(logits.float(), y, 1 + gap), ce, rtol=10 * gap + 1e-6, atol=1e-6)


def test_soft_targets_average_the_labels() -> None:
    logits, _, soft = rows()
    each = torch.stack([comp_sum_loss(logits, torch.full((7,), k), 1.6) for k in range(4)], -1)
    assert torch.allclose(comp_sum_loss(logits, soft, 1.6), (soft * each).sum(-1))


def test_absolute_error_is_symmetric() -> None:
    """Summed over all labels it is constant, so evenly wrong labels only scale it (Ghosh et al. 2017)."""
    logits, _, _ = rows()
    total = sum(comp_sum_loss(logits, torch.full((7,), k), 2.0) for k in range(4))
    assert torch.allclose(total, torch.full((7,), 3.0, dtype=torch.float64))


# ---- the bound
def best_loss(p: Tensor, tau: float) -> Tensor:
    """Least conditional comp-sum loss under label probabilities ``p`` (..., n), in closed form."""
    if tau >= 2:
        return (1 - p.max(-1).values) / (tau - 1)
    if tau == 1:
        return -torch.special.xlogy(p, p).sum(-1)
    power = 1 / (2 - tau)
    return ((p**power).sum(-1) ** (2 - tau) - 1) / (1 - tau)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("tau", TAUS)
def test_bound_holds_for_random_scores(tau: float, classes: int) -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.distributions.Dirichlet(torch.full((classes,), 0.7, dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        p = p.sample((1000,))
    scores = 2 * torch.randn(1000, classes, generator=g, dtype=torch.float64)
    gap = comp_sum_loss(scores, p, tau) - best_loss(p, tau)
    assert (gap >= -1e-12).all()
    chosen = p.gather(-1, scores.argmax(-1, keepdim=True))[:, 0]
    excess = p.max(-1).values - chosen
    assert (excess <= h_consistency_bound(gap.clamp(min=0), tau, classes) + 1e-9).all()


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 1.7, 2.0])
def test_two_tied_classes_show_how_tight_it_is(tau: float, classes: int) -> None:
    """Exact for tau <= 1; for 1 < tau <= 2 the bound is that of (2/n)^(tau-1) times the gap."""
    e = 0.37
    p = torch.zeros(classes, dtype=torch.float64)
    p[0], p[1] = (1 + e) / 2, (1 - e) / 2
    scores = torch.full((classes,), -300.0, dtype=torch.float64)
    scores[:2] = 0.0  # tied: choosing the worse of the two costs e
    tied = (p[:2] * comp_sum_loss(scores.expand(2, -1), torch.tensor([0, 1]), tau)).sum()
    gap = tied - best_loss(p, tau)
    slack = (2 / classes) ** (tau - 1) if tau > 1 else 1.0
    assert h_consistency_bound(gap * slack, tau, classes).item() == pytest.approx(e, abs=1e-8)


def test_bound_at_the_ends() -> None:
    for tau in TAUS:
        ends = h_consistency_bound(torch.tensor([0.0, 1e9]), tau, 3)
        assert ends.tolist() == pytest.approx([0.0, 1.0], abs=1e-9)
    assert h_consistency_bound(0.1, 1.0, 3).item() > h_consistency_bound(0.05, 1.0, 3).item()


# ---- the adversarial form
def test_adversarial_term_of_a_linear_model() -> None:
    """Two classes: D moves by (w_y - w_j) . r, at most radius * ||w_y - w_j||_1 in the box."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(2, 6, generator=g, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(5, 6, generator=g, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    found = adversarial_comp_sum_loss(
        lambda x: x @ w.T, x, y, radius=0.1, tau=1.5, rho=2.0, nu=3.0, generator=torch.Generator().manual_seed(2)
    )
    expected = comp_sum_loss(x @ w.T / 2, y, 1.5) + 3 * 0.1 * (w[0] - w[1]).abs().sum()
    assert torch.allclose(found, expected, rtol=1e-10)
    found.sum().backward()
    assert torch.isfinite(w.grad).all()


def test_adversarial_stays_in_the_box_and_gains_by_steps() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3
    seen: list[Tensor] = []

    def predict(z: Tensor) -> Tensor:
        seen.append(z.detach())
        return net(z)

    def loss(steps: int) -> float:
        g = torch.Generator().manual_seed(3)
        return adversarial_comp_sum_loss(predict, x, y, radius=0.3, steps=steps, generator=g).mean().item()

    assert loss(10) > loss(1)
    assert all((z - x).abs().max() <= 0.3 + 1e-12 for z in seen)


# ---- methods
@pytest.mark.parametrize("kind", ["conv", "tokens"])
def test_methods_replace_the_loss(kind: str) -> None:
    model, task, batch = problem(kind)
    model.eval()
    keep = batch["y"] != -100
    logits, y = model(batch["x"])[keep], batch["y"][keep]
    for method, tau in ((CompSum(tau=0.5), 0.5), (GeneralizedCrossEntropy(q=0.4), 1.4), (MeanAbsoluteError(), 2.0)):
        recipe = wp.Recipe(method).attach(model, task)
        expected = comp_sum_loss(logits, y, tau).mean().item()
        assert recipe.objective(model, batch).item() == pytest.approx(expected, rel=1e-5)
        recipe.detach()


@pytest.mark.parametrize("kind", ["conv", "transformer"])
@pytest.mark.parametrize("method", [CompSum, GeneralizedCrossEntropy, MeanAbsoluteError])
def test_trains(kind: str, method: type[wp.Method]) -> None:
    losses = fitted(method(), kind)
    assert losses[-1] < losses[0]


def test_two_replacements_are_refused() -> None:
    model, task, _ = problem("conv")
    with pytest.raises(wp.RecipeError, match="CompSum and MeanAbsoluteError each replace the loss"):
        wp.Recipe(CompSum(), MeanAbsoluteError()).attach(model, task)


def test_bad_input() -> None:
    logits, y, _ = rows()
    with pytest.raises(ValueError, match="tau of at least 0"):
        comp_sum_loss(logits, y, -1.0)
    with pytest.raises(ValueError, match="q must be 0 to 1"):
        GeneralizedCrossEntropy(q=1.2)
    with pytest.raises(ValueError, match="at least 2 classes"):
        h_consistency_bound(0.1, 1.0, 1)
    with pytest.raises(ValueError, match="gaps of at least 0"):
        h_consistency_bound(-0.1, 1.0, 2)
    with pytest.raises(ValueError, match="radius > 0"):
        adversarial_comp_sum_loss(lambda x: x, logits, y, radius=0.0)
