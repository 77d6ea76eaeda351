"""Preferences: log-probabilities by loops, the loss by its formula, the reference left alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed import Recipe
from wellposed.tasks import Prefer, dpo_loss, sequence_log_probs

B, T, V = 4, 5, 6


def language() -> nn.Module:
    return nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V)).double()


def pairs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    answer = (torch.arange(T) >= 2).expand(B, T)
    shorter = answer & (torch.arange(T) < 4)  # one place of padding
    return {
        "chosen": torch.randint(V, (B, T)), "chosen_mask": answer,
        "rejected": torch.randint(V, (B, T)), "rejected_mask": shorter,
    }  # fmt: skip


def test_log_probs_by_loops() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(B, T, V).double(), torch.randint(V, (B, T))
    mask = torch.rand(B, T) < 0.6
    expected = torch.zeros(B, dtype=torch.float64)
    for b in range(B):
        for t in range(1, T):
            if mask[b, t]:
                expected[b] += logits[b, t - 1].log_softmax(-1)[ids[b, t]]
    torch.testing.assert_close(sequence_log_probs(logits, ids, mask), expected)
    torch.testing.assert_close(sequence_log_probs(logits, ids, mask.long()), expected)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the mask has shape \(1, 5\), the ids have \(4, 5\)"):
        sequence_log_probs(torch.randn(B, T, V), torch.zeros(B, T).long(), torch.ones(1, T))


def test_log_probs_of_half_precision_are_summed_in_single() -> None:
    logits = torch.randn(B, T, V).bfloat16()
    assert sequence_log_probs(logits, torch.randint(V, (B, T)), torch.ones(B, T)).dtype == torch.float32


def test_loss_is_the_papers() -> None:
    for margin in (-3.0, 0.0, 2.0):
        p = 1 / (1 + math.exp(-0.5 * margin))
        m = torch.tensor(margin, dtype=torch.float64)
        assert dpo_loss(m, 0.5).item() == pytest.approx(-math.log(p))
        assert dpo_loss(m, 0.5, 0.1).item() == pytest.approx(-0.9 * math.log(p) - 0.1 * math.log(1 - p))


def test_smoothed_loss_is_least_at_the_odds_of_being_right() -> None:
    """With a share s of wrong preferences, sigmoid(beta margin) = 1 - s is where the gradient vanishes."""
    beta, s = 0.2, 0.1
    margin = torch.tensor(math.log((1 - s) / s) / beta, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(dpo_loss(margin, beta, s), margin)
    assert abs(grad.item()) < 1e-15


def test_gradient() -> None:
    margin = torch.linspace(-4, 4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: dpo_loss(m, 0.3, 0.05), (margin,))


def test_a_reference_equals_its_precomputed_log_probs() -> None:
    batch, model, reference = pairs(), language(), language()
    known = {
        f"reference_{k}": sequence_log_probs(reference(batch[k]), batch[k], batch[f"{k}_mask"]).detach()
        for k in ("chosen", "rejected")
    }
    live, before = Prefer(reference), Prefer()
    torch.testing.assert_close(
        live.loss(live.forward(model, batch), batch), before.loss(before.forward(model, batch | known), batch | known)
    )


def test_log_probs_of_the_reference_have_no_gradient() -> None:
    batch, model = pairs(), language()
    ids = torch.cat([batch["chosen"], batch["rejected"]])
    both = sequence_log_probs(model(ids), ids, torch.cat([batch["chosen_mask"], batch["rejected_mask"]])).chunk(2)
    known = dict(zip(("reference_chosen", "reference_rejected"), both, strict=True))  # made without `no_grad`
    task = Prefer()
    torch.autograd.backward(task.loss(task.forward(model, batch | known), batch | known).sum())
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_reference_free_compares_log_probs_alone() -> None:
    batch, model = pairs(), language()
    out = Prefer(reference_free=True).forward(model, batch)
    assert torch.equal(out["margin"], out["chosen_log_probs"] - out["rejected_log_probs"])


def test_training_prefers_the_chosen_and_leaves_the_reference() -> None:
    torch.manual_seed(1)
    batch, model = pairs(), language()
    task = Prefer(model, beta=0.5)
    before = [p.clone() for p in task.reference.parameters()]  # type: ignore[union-attr]
    recipe = Recipe().attach(model, task)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    assert recipe.step(batch, optimizer)["task"].item() == pytest.approx(math.log(2))
    for _ in range(50):
        recipe.step(batch, optimizer)
    assert (task.forward(model, batch)["margin"] > 1).all()
    assert all(torch.equal(p, q) for p, q in zip(before, task.reference.parameters(), strict=True))  # type: ignore[union-attr]
    assert not any(p.requires_grad for p in task.reference.parameters())  # type: ignore[union-attr]


def test_columns_of_the_reference_are_refused() -> None:
    known = {f"reference_{k}": torch.zeros(B, 1) for k in ("chosen", "rejected")}
    with pytest.raises(ValueError, match=r"\(B,\) = \(4,\), got \(4, 1\)"):
        Prefer().forward(language(), pairs() | known)


def test_answers_of_different_lengths_are_refused() -> None:
    batch = pairs()
    batch["rejected"] = batch["rejected"][:, :4]
    with pytest.raises(ValueError, match="pad both to one length"):
        Prefer(reference_free=True).forward(language(), batch)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"beta": 0}, "beta"),
        ({"label_smoothing": 0.5}, r"\[0, 0.5\)"),
        ({"reference": nn.Identity(), "reference_free": True}, "not both"),
    ],
)
def test_bad_settings(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Prefer(**wrong)
