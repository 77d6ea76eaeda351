"""Label smoothing against its definition as a softened target and torch's own implementation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, problem, rows

import wellposed as wp
from wellposed.objectives.label_smoothing import LabelSmoothing, uniform_cross_entropy
from wellposed.tasks.regress import Regress


def total(method: wp.Method, kind: str, **changed: object) -> float:
    model, task, batch = problem(kind)
    model.eval()
    recipe = wp.Recipe(method).attach(model, task)
    return float(recipe.objective(model, {**batch, **changed}).detach())


def test_uniform_cross_entropy() -> None:
    logits, _, _ = rows()
    expected = [-sum(math.log(p) for p in row) / 4 for row in F.softmax(logits.detach(), -1).tolist()]
    assert torch.allclose(uniform_cross_entropy(logits), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(uniform_cross_entropy, logits)
    assert uniform_cross_entropy(torch.zeros(2, 5)).tolist() == pytest.approx([math.log(5)] * 2)


@pytest.mark.parametrize("epsilon", [0.1, 0.4, 1.0])
def test_equals_torch(epsilon: float) -> None:
    model, _, batch = problem("conv")
    model.eval()
    expected = F.cross_entropy(model(batch["x"]), batch["y"], label_smoothing=epsilon).item()
    assert total(LabelSmoothing(epsilon=epsilon), "conv") == pytest.approx(expected, rel=1e-6)


def test_soft_targets_are_smoothed_too() -> None:
    model, _, batch = problem("conv")
    model.eval()
    soft = torch.rand(12, 3).softmax(-1)
    expected = F.cross_entropy(model(batch["x"]), 0.8 * soft + 0.2 / 3).item()
    assert total(LabelSmoothing(epsilon=0.2), "conv", y=soft) == pytest.approx(expected, rel=1e-6)


def test_padding_does_not_count() -> None:
    model, _, batch = problem("tokens")
    model.eval()
    expected = F.cross_entropy(model(batch["x"]).flatten(0, 1), batch["y"].flatten(), label_smoothing=0.2).item()
    assert total(LabelSmoothing(epsilon=0.2), "tokens") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["conv", "transformer", "tokens"])
def test_trains_but_stays_above_the_floor(kind: str) -> None:
    """The optimum gives the label 1 - epsilon + epsilon / C, so the plain loss cannot vanish."""
    losses = fitted(LabelSmoothing(epsilon=0.4), kind, steps=80)
    assert losses[-1] < losses[0]
    assert losses[-1] > 0.5 * -math.log(0.6 + 0.4 / 3)


def test_bad_epsilon() -> None:
    with pytest.raises(ValueError, match="epsilon must be 0 to 1"):
        LabelSmoothing(epsilon=1.5)
    with pytest.raises(wp.RecipeError, match="class or token targets"):
        wp.Recipe(LabelSmoothing()).attach(torch.nn.Linear(2, 1), Regress())
