"""The confidence penalty against sums of p log p, and its meaning as a divergence from uniform."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, problem, rows

import wellposed as wp
from wellposed.objectives.confidence_penalty import ConfidencePenalty


@pytest.mark.parametrize("kind", ["conv", "tokens"])
def test_term_is_the_mean_of_p_log_p(kind: str) -> None:
    model, task, batch = problem(kind)
    model.eval()
    recipe = wp.Recipe(ConfidencePenalty(strength=0.3)).attach(model, task)
    recipe.objective(model, batch)
    term = recipe.update()["ConfidencePenalty"].item()
    p = F.softmax(model(batch["x"]), -1)[batch["y"] != -100].double().tolist()
    expected = 0.3 * sum(q * math.log(q) for row in p for q in row) / len(p)
    if kind == "tokens":  # rows of unequal length weigh by their tokens once the step knows them
        per_row = [
            (sum(q * math.log(q) for place in row[keep].double().tolist() for q in place), int(keep.sum()))
            for row, keep in zip(F.softmax(model(batch["x"]), -1), batch["y"] != -100, strict=True)
        ]
        assert sum(v for v, _ in per_row) / sum(n for _, n in per_row) * 0.3 == pytest.approx(expected)
    assert term == pytest.approx(expected, rel=1e-5)


def test_pulls_towards_uniform_by_kl() -> None:
    """-H(p) = KL(p || uniform) - log C: the same gradient, and a minimum at the uniform distribution."""
    logits, _, _ = rows()
    negative_entropy = -wp.conditional_entropy(logits)
    log_p = F.log_softmax(logits, -1)
    kl = (log_p.exp() * (log_p + math.log(4))).sum(-1)
    assert torch.allclose(negative_entropy, kl - math.log(4))
    assert (negative_entropy >= -math.log(4)).all()


def test_keeps_entropy_up() -> None:
    def entropy(method: wp.Method | None) -> float:
        model, task, batch = problem("conv")
        recipe = wp.Recipe(*([method] if method else [])).attach(model, task)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(40):
            recipe.step(batch, optimizer)
        return wp.conditional_entropy(model(batch["x"])).mean().item()

    assert entropy(ConfidencePenalty(strength=0.5)) > 2 * entropy(None)


def test_trains_a_transformer() -> None:
    losses = fitted(ConfidencePenalty(strength=0.1), "transformer", steps=60)
    assert losses[-1] < 0.8 * losses[0]


def test_bad_strength() -> None:
    with pytest.raises(ValueError, match="strength must be at least 0"):
        ConfidencePenalty(strength=-0.1)
