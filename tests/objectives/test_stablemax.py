"""StableMax: value, order, precision at huge logits, and the slope at zero."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, rows, slope

from wellposed.objectives.stablemax import (
    StableMax,
    log_stablemax,
    softmax_collapse_rate,
    stablemax,
    stablemax_cross_entropy,
)


def score(x: float) -> float:
    return x + 1 if x >= 0 else 1 / (1 - x)


def test_value_by_explicit_loops() -> None:
    logits, y, soft = rows(classes=5)
    p = [[score(f) / sum(map(score, row)) for f in row] for row in logits.tolist()]
    assert torch.allclose(stablemax(logits), torch.tensor(p, dtype=torch.float64), rtol=1e-13, atol=0)
    found = stablemax_cross_entropy(logits, y)
    assert found.tolist() == pytest.approx([-math.log(row[k]) for row, k in zip(p, y.tolist(), strict=True)], rel=1e-12)
    _, _, soft = rows(classes=5)
    expected = -(soft * torch.tensor(p, dtype=torch.float64).log()).sum(-1)
    assert torch.allclose(stablemax_cross_entropy(logits, soft), expected, rtol=1e-12)
    assert torch.allclose(log_stablemax(logits.T, dim=0).T, log_stablemax(logits))


def test_gradients() -> None:
    logits, y, soft = rows()
    assert torch.autograd.gradcheck(lambda f: stablemax_cross_entropy(f, y), logits)
    assert torch.autograd.gradcheck(lambda f: stablemax_cross_entropy(f, soft), logits)


def test_slope_at_zero_is_that_of_the_softmax() -> None:
    """s(0) = s'(0) = 1 as for exp: a head that starts at zero learns as it would with the softmax."""
    logits = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1, 3])
    found = slope(stablemax_cross_entropy(logits, y), logits)
    assert torch.allclose(found, slope(F.cross_entropy(logits, y, reduction="none"), logits))


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_softmax_collapses_and_stablemax_does_not(scale: float) -> None:
    logits = (scale * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))).requires_grad_()
    y = logits.argmax(-1)
    assert softmax_collapse_rate(logits, y) > 0.9
    assert softmax_collapse_rate(logits / scale, y) == 0
    loss = stablemax_cross_entropy(logits, y)
    assert (loss > 0).all()
    assert slope(loss, logits).ne(0).any(-1).all()
    p = stablemax(logits)
    assert torch.allclose(p.sum(-1), torch.ones(64), rtol=0, atol=1e-6)
    assert torch.equal(p.argmax(-1), y)


def test_small_losses_keep_their_digits() -> None:
    """One logit at 1e6, the other at -1e6: the loss is 1e-12, far below the spacing of floats around 1."""
    logits = torch.tensor([[1e6, -1e6]])
    assert stablemax_cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(1e-12, rel=1e-4)


def test_padding_costs_nothing_and_half_precision_is_widened() -> None:
    logits = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    found = stablemax_cross_entropy(logits, torch.tensor([1, -100]))
    assert found.dtype == torch.float32
    assert found[1] == 0
    assert not slope(found, logits)[1].any()


@pytest.mark.parametrize("kind", ["conv", "transformer", "tokens"])
def test_trains(kind: str) -> None:
    losses = fitted(StableMax(), kind)
    assert losses[-1] < losses[0]
