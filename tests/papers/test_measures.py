"""Measurements against closed forms."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed.papers import measures
from wellposed.parts import spectra
from wellposed.workbench.data.corruptions import dropout, scale


class Lookup(nn.Module):
    """Logits that are the input; a dropout layer shows whether it is in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.999)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(x)
        return out


EYE = torch.eye(4)


def test_quality_in_evaluation_mode_which_is_put_back() -> None:
    model = Lookup()
    found = measures.quality(model, 100 * EYE, torch.tensor([0, 1, 2, 0]))
    assert found["accuracy"] == 75
    assert found["nll"] == pytest.approx(100 / 4)  # the one mistake costs 100 nats
    assert found["ece"] == pytest.approx(25)  # fully confident, and right three times of four
    assert model.training
    assert model.drop.training


def test_nll_and_ece_of_a_coin() -> None:
    logits, y = torch.zeros(10, 2), torch.tensor([0] * 5 + [1] * 5)
    assert measures.nll(logits, y) == pytest.approx(math.log(2))
    assert measures.ece(logits, y) == pytest.approx(0)
    assert measures.ece(logits, torch.zeros(10, dtype=torch.long)) == pytest.approx(50)


def test_memorised_share_of_the_wrong_labels_alone() -> None:
    clean = torch.tensor([0, 1, 2, 3])
    given = torch.tensor([0, 2, 2, 0])  # two are wrong
    assert measures.memorised(Lookup(), EYE, given, clean) == 0
    assert measures.memorised(Lookup(), EYE[[0, 2, 2, 3]], given, clean) == 50
    assert measures.memorised(Lookup(), EYE, clean, clean) == 0


def test_accuracy_under_corruptions() -> None:
    y = torch.arange(4)
    assert measures.corrupted_accuracy(Lookup(), EYE, y, scale, 0.5) == 100
    assert measures.corrupted_accuracy(Lookup(), EYE, y, scale, -1.0) == 0
    assert measures.corrupted_accuracy(Lookup(), EYE, y, dropout, 1.0) == 25  # nothing left: the first class


@pytest.mark.parametrize(("radius", "expected"), [(0.0, 100), (0.19, 100), (0.21, 50), (0.5, 0)])
def test_attack_on_a_linear_classifier_crosses_exactly_the_margins_within_reach(radius: float, expected: float) -> None:
    """Logits +x and -x, scaled: a point falls if its distance from 0 is below the radius."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e6], [-1e6]]))  # the cross-entropy is flat almost everywhere
    x, y = torch.tensor([[0.2], [0.4], [-0.2], [-0.4]]), torch.tensor([0, 0, 1, 1])
    assert measures.attacked_accuracy(model, x, y, radius, box=None) == expected
    assert measures.attacked_accuracy(model, x, y, radius, box=None, norm="l2") == expected
    assert measures.attacked_accuracy(model, x[:2], y[:2], radius, box=(0.1, 1.0)) == 100  # 0 lies outside


@pytest.mark.parametrize("values", [[3.0, 1.0, 0.5], [-3.0, 1.0, 0.5]])
def test_sharpness_of_a_quadratic(values: list[float]) -> None:
    model = nn.Linear(3, 1, bias=False)
    basis, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    h = basis @ torch.diag(torch.tensor(values)) @ basis.T
    found = measures.sharpness(model, lambda: model.weight[0] @ h @ model.weight[0] / 2)
    assert found == pytest.approx(values[0], rel=1e-4)


def test_sharpness_looks_at_trainable_parameters_alone() -> None:
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    assert measures.sharpness(model, lambda: (2 * model.weight.square() + 50 * model.bias.square()).sum()) == 4


def test_share_of_zeros() -> None:
    assert measures.zeros(torch.eye(4)) == 75
    assert measures.zeros([torch.eye(4), torch.ones(16)]) == 37.5
    assert math.isnan(measures.zeros([]))


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([[90, 0], [70, 95]], 20),
        ([[90, 0, 0], [70, 95, 0], [80, 85, 99]], (10 + 10) / 2),
        ([[50, 0, 0], [90, 80, 0], [60, 80, 70]], (30 + 0) / 2),  # the best was after the second task
        ([[90, 99], [95, 95]], -5),  # learned more later; what was known before training does not count
    ],
)
def test_forgetting(accuracies: Any, expected: float) -> None:
    assert measures.forgetting(accuracies) == expected


def test_effective_rank_is_the_shared_one() -> None:
    assert measures.effective_rank is spectra.effective_rank
    assert float(measures.effective_rank(torch.eye(5))) == pytest.approx(5)
