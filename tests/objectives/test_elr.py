"""Early-learning regularization: penalty, gradient, running targets, and what it is for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, problem, rows, slope
from torch import nn

import wellposed as wp
from wellposed.objectives.elr import ELR, elr_penalty
from wellposed.smoothness.sam import SAM


def test_value() -> None:
    logits, _, target = rows()
    p = F.softmax(logits, -1)
    expected = [
        math.log(1 - sum(a * b for a, b in zip(s, t, strict=True)))
        for s, t in zip(p.tolist(), target.tolist(), strict=True)
    ]
    assert elr_penalty(p, target).tolist() == pytest.approx(expected, rel=1e-13)


def test_gradient_pulls_towards_the_target() -> None:
    """d/dz_k log(1 - <p, t>) = -p_k (t_k - <p, t>) / (1 - <p, t>)."""
    logits, _, target = rows()
    p = F.softmax(logits, -1)
    inner = (p * target).sum(-1, keepdim=True)
    expected = -p * (target - inner) / (1 - inner)
    assert torch.allclose(slope(elr_penalty(p, target), logits), expected, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda f: elr_penalty(F.softmax(f, -1), target), logits)


def test_wrong_label_is_cancelled_and_true_one_is_kept_alive() -> None:
    """Where net and target agree on class 0: against label 1 the pull weakens, with label 0 it does not vanish."""
    logits = torch.tensor([[5.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    p = F.softmax(logits, -1)
    pull = slope(3 * elr_penalty(p, p.detach()), logits)
    wrong = slope(F.cross_entropy(logits, torch.tensor([1]), reduction="none"), logits)
    true = slope(F.cross_entropy(logits, torch.tensor([0]), reduction="none"), logits)
    assert wrong[0, 0] > 0 > (wrong + pull)[0, 0]
    assert (true + pull)[0, 0] < 10 * true[0, 0] < 0


def test_targets_are_running_averages_of_clipped_predictions() -> None:
    model, task, batch = problem("conv")
    method = ELR(rows=12, classes=3, beta=0.7, strength=2.0)
    recipe = wp.Recipe(method).attach(model, task)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    target = torch.zeros(12, 3)
    for _ in range(4):
        p = F.softmax(model(batch["x"]), -1).detach().clamp(1e-4, 1 - 1e-4)
        target = 0.7 * target + 0.3 * p / p.sum(-1, keepdim=True)
        expected = 2 * (1 - (target * p).sum(-1)).log().mean().item()
        assert recipe.step(batch, optimizer)["ELR"].item() == pytest.approx(expected, rel=1e-4)
        assert torch.allclose(method.memory.values, target, atol=1e-6)


def test_rows_not_shown_stay() -> None:
    model, task, batch = problem("conv")
    method = ELR(rows=12, classes=3)
    recipe = wp.Recipe(method).attach(model, task)
    recipe.step({k: v[3:5] for k, v in batch.items()}, torch.optim.SGD(model.parameters(), lr=0.1))
    assert method.memory.values.any(-1).tolist() == [i in (3, 4) for i in range(12)]


def test_extra_passes_do_not_average_again() -> None:
    model, task, batch = problem("conv")
    method = ELR(rows=12, classes=3, beta=0.5)
    recipe = wp.Recipe(SAM(rho=0.5), method).attach(model, task)
    p = F.softmax(model(batch["x"]), -1).detach()
    recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.allclose(method.memory.values, 0.5 * p, atol=1e-5)


def test_confident_bfloat16_model_is_finite() -> None:
    """In bfloat16 the upper clip would round to 1, and the penalty to log 0."""
    model = nn.Linear(3, 3, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.copy_(1000 * torch.eye(3))
    batch = {"x": torch.eye(3).bfloat16(), "y": torch.arange(3), "index": torch.arange(3)}
    recipe = wp.Recipe(ELR(rows=3, classes=3, beta=0.0)).attach(model, wp.Classify(classes=3))
    terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1))
    assert terms["ELR"].item() == pytest.approx(3 * math.log(1 - (1 - 1e-4) ** 2 / (1 + 1e-4)), rel=0.02)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    losses = fitted(ELR(rows=12, classes=3, strength=1.0), kind)
    assert losses[-1] < losses[0]


def test_wrong_labels_are_memorised_less() -> None:
    """Two blobs, a third of the labels wrong, a net that can fit them all."""

    def wrongly_fitted(method: wp.Method | None) -> float:
        g = torch.Generator().manual_seed(0)
        truth = torch.arange(60) % 2
        x = torch.randn(60, 20, generator=g) + 1.5 * (2 * truth[:, None] - 1)
        wrong = torch.arange(60) % 3 == 0
        y = torch.where(wrong, 1 - truth, truth)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
        recipe = wp.Recipe(*([method] if method else [])).attach(model, wp.Classify(classes=2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(100):
            recipe.step({"x": x, "y": y, "index": torch.arange(60)}, optimizer)
        return (model(x).argmax(-1) == y)[wrong].float().mean().item()

    assert wrongly_fitted(None) > 0.9
    assert wrongly_fitted(ELR(rows=60, classes=2)) < 0.1


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="beta must be 0 to 1"):
        ELR(rows=3, classes=2, beta=1.5)
    model, task, batch = problem("conv")
    del batch["index"]
    with pytest.raises(wp.RecipeError, match="ELR needs 'index'"):
        wp.Recipe(ELR(rows=12, classes=3)).attach(model, task, example=batch)
