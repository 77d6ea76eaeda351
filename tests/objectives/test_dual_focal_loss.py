"""Focal and dual focal loss: values, order, ties, and where they are flat."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, rows
from torch import Tensor

from wellposed.objectives.dual_focal_loss import DualFocalLoss, FocalLoss, dual_focal_loss, focal_loss
from wellposed.objectives.poly_loss import poly_focal_loss


def by_loops(logits: Tensor, y: Tensor, gamma: float) -> list[float]:
    found = []
    for row, k in zip(logits.tolist(), y.tolist(), strict=True):
        total = sum(math.exp(f) for f in row)
        p = [math.exp(f) / total for f in row]
        lower = [q for q in p if q < p[k]]
        found.append(-((1 - p[k] + (max(lower) if lower else 0)) ** gamma) * math.log(p[k]))
    return found


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 5.0])
def test_value_by_explicit_loops(gamma: float) -> None:
    logits, y, soft = rows(classes=6)
    assert dual_focal_loss(logits, y, gamma).tolist() == pytest.approx(by_loops(logits, y, gamma), rel=1e-12)
    every = [by_loops(logits, torch.full((7,), k), gamma) for k in range(6)]
    _, _, soft = rows(seed=3, classes=6)
    expected = [sum(soft[i, k].item() * every[k][i] for k in range(6)) for i in range(7)]
    assert dual_focal_loss(logits, soft, gamma).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0])
def test_gradient_flows_through_both_probabilities(gamma: float) -> None:
    logits, y, soft = rows()
    assert torch.autograd.gradcheck(lambda f: dual_focal_loss(f, y, gamma), logits)
    assert torch.autograd.gradcheck(lambda f: dual_focal_loss(f, soft, gamma), logits)
    assert torch.autograd.gradcheck(lambda f: focal_loss(f, y, gamma), logits)


def test_gamma_zero_is_cross_entropy_and_dual_focal_lies_between_focal_and_it() -> None:
    logits, y, soft = rows(classes=6)
    ce = F.cross_entropy(logits, y, reduction="none")
    assert torch.equal(dual_focal_loss(logits, y, 0.0), ce)
    for target in (y, soft):
        low, middle = focal_loss(logits, target, 3.0), dual_focal_loss(logits, target, 3.0)
        assert (low <= middle).all()
        assert (middle <= F.cross_entropy(logits, target, reduction="none")).all()
    assert torch.allclose(focal_loss(logits, y, 2.0), poly_focal_loss(logits, y, 2.0, 0.0))


def test_only_probabilities_strictly_below_count() -> None:
    tied = torch.zeros(1, 3)
    ids = torch.zeros(1, dtype=torch.long)
    assert torch.allclose(dual_focal_loss(tied, ids, 5.0), focal_loss(tied, ids, 5.0))
    lowest = torch.tensor([[-4.0, 0.0, 1.0]])  # the largest wrong class would give a factor above 1
    assert torch.allclose(dual_focal_loss(lowest, ids, 5.0), focal_loss(lowest, ids, 5.0))


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_certain_predictions_are_flat_and_padding_costs_nothing(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    found = dual_focal_loss(logits, torch.tensor([0, -100]), gamma)
    assert found.tolist() == [0, 0]
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert slope.isfinite().all()
    assert not slope[1].any()


@pytest.mark.parametrize("kind", ["conv", "transformer", "tokens"])
@pytest.mark.parametrize("method", [DualFocalLoss, FocalLoss])
def test_trains(kind: str, method: type[DualFocalLoss] | type[FocalLoss]) -> None:
    losses = fitted(method(), kind)
    assert losses[-1] < losses[0]


def test_bad_input() -> None:
    logits, y, _ = rows()
    with pytest.raises(ValueError, match="gamma of at least 0, got -1"):
        dual_focal_loss(logits, y, -1.0)
    with pytest.raises(ValueError, match="gamma must be at least 0, got -1"):
        DualFocalLoss(gamma=-1.0)
