"""AROW against the paper's formula sample by sample, and its attack."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.smoothness import arow
from wellposed.smoothness.arow import AROW, Weighting, arow_penalty, consistency_attack


def logits(seed: int, rows: int = 6) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Y = torch.arange(6) % 4


@pytest.mark.parametrize("weighting", ["arow", "trades", "cow"])
def test_value_by_explicit_loops(weighting: Weighting) -> None:
    clean, attacked = logits(0), logits(1)
    found = arow_penalty(clean, attacked, Y, weighting)
    for i in range(6):
        p, q = clean[i].softmax(0), attacked[i].softmax(0)
        kl = sum(float(p[k] * (p[k] / q[k]).log()) for k in range(4))
        factor = {"arow": 1 - float(q[Y[i]]), "trades": 1.0, "cow": float(p[Y[i]])}[weighting]
        assert float(found[i]) == pytest.approx(kl * factor, rel=1e-12)


@pytest.mark.parametrize("weighting", ["arow", "cow"])
def test_gradient_flows_through_both_predictions_and_the_weight(weighting: Weighting) -> None:
    clean, attacked = logits(0).requires_grad_(), logits(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: arow_penalty(a, b, Y, weighting), (clean, attacked))


def test_is_trades_less_what_sure_samples_keep() -> None:
    """AROW = TRADES - mean(KL p_y(x')); nothing where the attack leaves the label certain."""
    clean, attacked = logits(0), logits(1)
    kept = arow_penalty(clean, attacked, Y, "trades") * attacked.softmax(-1).gather(1, Y[:, None])[:, 0]
    expected = arow_penalty(clean, attacked, Y, "trades") - kept
    torch.testing.assert_close(arow_penalty(clean, attacked, Y), expected, rtol=1e-12, atol=1e-15)
    certain = F.one_hot(Y, 4).double() * 100
    assert arow_penalty(clean, certain, Y).max() < 1e-30


def test_soft_targets() -> None:
    clean, attacked = logits(0), logits(1)
    hard = arow_penalty(clean, attacked, Y)
    torch.testing.assert_close(arow_penalty(clean, attacked, F.one_hot(Y, 4).double()), hard, rtol=1e-12, atol=1e-15)


def conv(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).double()


def images() -> Tensor:
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_attack_climbs_from_the_saddle_and_stays_inside() -> None:
    model, x = conv().eval(), images()
    clean = model(x)
    worst = consistency_attack(model, x, clean, 0.1, 5, 0.05, (0.0, 1.0), torch.Generator().manual_seed(0))
    assert (worst - x).abs().max() <= 0.1 + 1e-15
    assert worst.min() >= 0
    assert worst.max() <= 1
    near = x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    divergence = arow_penalty(clean, model(worst), Y.repeat(2), "trades")
    assert (divergence > 100 * arow_penalty(clean, model(near), Y.repeat(2), "trades")).all()
    assert all(p.grad is None for p in model.parameters())


def test_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smoothed cross-entropy on the clean input, and the penalty at the attack's result with frozen statistics."""
    seen: list[Tensor] = []

    def record(*args: object) -> Tensor:
        seen.append(consistency_attack(*args))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(arow, "consistency_attack", record)
    model, x, y = conv(), images(), torch.arange(12) % 4
    recipe = wp.Recipe(AROW(radius=0.1, attack_steps=3, strength=5.0, smoothing=0.3)).attach(model, wp.Classify())
    terms = recipe.step({"x": x, "y": y}, torch.optim.SGD(model.parameters(), lr=0.0))
    clean, attacked = model(x), model(seen[0])  # in training mode: by the batch's statistics
    assert terms["task"].item() == pytest.approx(F.cross_entropy(clean, y, label_smoothing=0.3).item(), rel=1e-10)
    assert terms["AROW"].item() == pytest.approx(5 * arow_penalty(clean, attacked, y).mean().item(), rel=1e-10)
    expected = torch.autograd.grad(
        F.cross_entropy(clean, y, label_smoothing=0.3) + 5 * arow_penalty(clean, attacked, y).mean(),
        list(model.parameters()),
    )
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


def test_trains_a_transformer_with_dropout_and_a_frozen_layer() -> None:
    torch.manual_seed(0)
    former = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    model = nn.Sequential(former, nn.Flatten(), nn.Linear(40, 3))
    frozen = former.linear1.weight.requires_grad_(False)
    kept = frozen.clone()
    x = torch.randn(12, 5, 8)
    recipe = wp.Recipe(AROW(radius=0.02, attack_steps=2)).attach(model, wp.Classify())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)["total"].item() for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(frozen, kept)


def test_bad_settings_and_inputs() -> None:
    with pytest.raises(ValueError, match="weighting must be 'arow', 'trades' or 'cow', got 'mart'"):
        AROW(weighting="mart")  # type: ignore[arg-type]
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    recipe = wp.Recipe(AROW()).attach(model, wp.Classify())
    with pytest.raises(TypeError, match="AROW moves the input a little"):
        recipe.step({"x": torch.randint(5, (6, 3)), "y": torch.arange(6) % 3}, torch.optim.SGD(model.parameters()))
