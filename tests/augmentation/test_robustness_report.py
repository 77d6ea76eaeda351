"""Robustness report: every number by hand on models whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wellposed.augmentation.robustness_report import (
    corruptions_for,
    false_positive_rate,
    ranking_score,
    robustness_report,
)
from wellposed.core.card import card


class Threshold(nn.Module):
    """Class 1 where the first value is above 0.5, the more surely the further from it; counts its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(100.0))
        self.most = 0

    def forward(self, x: Tensor) -> Tensor:
        self.most = max(self.most, len(x))
        margin = self.scale * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([-margin, margin], 1)


def test_attack_moves_every_margin_by_the_radius() -> None:
    x = torch.linspace(0, 1, 101)[:, None]
    y = (x[:, 0] > 0.5).long()
    model = Threshold()
    found = robustness_report(model, x, y, radius=0.1, rows=32)
    still = ((x[:, 0] - 0.5).abs() > 0.1 + 1e-6).float()
    assert found["accuracy"] == 100
    assert found["attacked"] == pytest.approx(100 * still.mean().item(), abs=2.1)  # ties at the radius itself
    assert model.most == 32
    assert model.scale.grad is None
    model.scale.data *= 1000  # probabilities rounded to 0 and 1: the attack still finds the way
    assert robustness_report(model, x, y, radius=0.1)["attacked"] == pytest.approx(found["attacked"], abs=2.1)


def test_corruptions_grow_with_severity_and_repeat() -> None:
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert set(corruptions_for(x)) == {"noise", "dropped values", "contrast", "blur"}
    assert set(corruptions_for(x.flatten(1))) == {"noise", "dropped values", "contrast"}
    for corrupt in corruptions_for(x).values():
        moved = [(corrupt(x, k, torch.Generator().manual_seed(0)) - x).square().mean() for k in (1, 3, 5)]
        assert 0 < moved[0] < moved[1] < moved[2]
        again = corrupt(x, 3, torch.Generator().manual_seed(0))
        assert torch.equal(again, corrupt(x, 3, torch.Generator().manual_seed(0)))
    flat = torch.full((2, 1, 4, 4), 0.3)
    for name in ("contrast", "blur"):  # nothing to lose
        assert torch.allclose(corruptions_for(flat)[name](flat, 5, torch.Generator()), flat)


def test_corrupted_is_the_mean_over_corruptions_and_severities() -> None:
    x = torch.tensor([[0.9], [0.8], [0.1]])
    y = torch.tensor([1, 1, 0])
    found = robustness_report(
        Threshold(),
        x,
        y,
        corruptions={"shift": lambda x, k, g: x - 0.07 * k, "none": lambda x, k, g: x},
    )
    # 0.9 falls below 0.5 at no severity but 0.8 at severity 5 (0.45): one of 15 answers
    assert found["corrupted: shift"] == pytest.approx(100 * 14 / 15)
    assert found["corrupted: none"] == 100
    assert found["corrupted"] == pytest.approx((100 + 100 * 14 / 15) / 2)


def test_scores_by_explicit_loops() -> None:
    inside, outside = torch.tensor([0.9, 0.8, 0.8, 0.3]), torch.tensor([0.8, 0.2, 0.9, 0.1, 0.95])
    wins = sum((a > b) + 0.5 * (a == b) for a in inside.tolist() for b in outside.tolist())
    assert ranking_score(inside, outside) == pytest.approx(100 * wins / 20)
    assert false_positive_rate(inside, outside, 0.75) == pytest.approx(100 * 3 / 5)  # threshold 0.8
    assert false_positive_rate(inside, outside, 1.0) == pytest.approx(100 * 3 / 5)  # threshold 0.3
    assert ranking_score(inside, inside) == 50


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_model_is_left_as_it_was(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "conv":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )
        x = torch.rand(12, 1, 8, 8)
    else:
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
        x = torch.rand(12, 5, 8)
    model.train()
    next(model.children()).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    found = robustness_report(model, x, torch.arange(12) % 3, unknown=torch.rand_like(x), seed=3)
    assert {"accuracy", "nll", "ece", "corrupted", "attacked", "auroc", "fpr95"} <= set(found)
    assert all(0 <= v <= 100 for k, v in found.items() if k != "nll")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_card_and_bad_input() -> None:
    assert card(robustness_report).summary.endswith(".")
    with pytest.raises(ValueError, match="got 0 inputs"):
        robustness_report(Threshold(), torch.zeros(0, 1), torch.zeros(0))
    with pytest.raises(ValueError, match=r"2 inputs of torch\.int64 and 2 labels"):
        robustness_report(Threshold(), torch.zeros(2, 1).long(), torch.zeros(2).long())
