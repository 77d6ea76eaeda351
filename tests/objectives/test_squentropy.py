"""Squentropy and the rescaled square loss against explicit loops and the closed-form gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, problem, rows, slope
from torch import Tensor

import wellposed as wp
from wellposed.objectives.squentropy import Squentropy, rescaled_square_loss, squentropy_penalty


def by_loops(logits: Tensor, y: Tensor) -> list[float]:
    return [
        sum(f**2 for j, f in enumerate(row) if j != int(c)) / (len(row) - 1)
        for row, c in zip(logits.tolist(), y, strict=True)
    ]


def test_value() -> None:
    logits, y, _ = rows()
    assert squentropy_penalty(logits, y).tolist() == pytest.approx(by_loops(logits, y), rel=1e-14)


def test_gradient_of_the_whole_loss() -> None:
    """softmax_j + 2 f_j / (C - 1) at wrong classes, softmax_y - 1 at the true one."""
    logits, y, _ = rows()
    found = slope(F.cross_entropy(logits, y, reduction="none") + squentropy_penalty(logits, y), logits)
    true = F.one_hot(y, 4).bool()
    p = F.softmax(logits, -1)
    expected = torch.where(true, p - 1, p + 2 * logits / 3)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_gradcheck_and_soft_targets() -> None:
    logits, y, soft = rows()
    assert torch.autograd.gradcheck(lambda f: squentropy_penalty(f, y), logits)
    assert torch.autograd.gradcheck(lambda f: squentropy_penalty(f, soft), logits)
    assert torch.autograd.gradcheck(lambda f: rescaled_square_loss(f, soft, 3.0, 2.0), logits)
    hard = F.one_hot(y, 4).double()
    assert torch.allclose(squentropy_penalty(logits, hard), squentropy_penalty(logits, y))
    mixed = 0.3 * squentropy_penalty(logits, y) + 0.7 * squentropy_penalty(logits, y.roll(1))
    blend = 0.3 * hard + 0.7 * F.one_hot(y.roll(1), 4).double()
    assert torch.allclose(squentropy_penalty(logits, blend), mixed)


def test_true_logit_is_free_and_logits_are_not_centred() -> None:
    logits, y, _ = rows()
    raised = logits + 1000.0 * F.one_hot(y, 4)
    assert torch.equal(squentropy_penalty(raised, y), squentropy_penalty(logits, y))
    assert not torch.allclose(squentropy_penalty(logits + 1, y), squentropy_penalty(logits, y))
    in_float32 = squentropy_penalty(raised.float(), y)  # no cancellation against the large true logit
    assert in_float32.tolist() == pytest.approx(by_loops(logits, y), rel=1e-5)


def test_rescaled_square_loss() -> None:
    logits, y, _ = rows()
    expected = [
        (2 * (row[int(c)] - 5) ** 2 + sum(f**2 for j, f in enumerate(row) if j != int(c))) / 4
        for row, c in zip(logits.tolist(), y, strict=True)
    ]
    assert rescaled_square_loss(logits, y, k=2.0, M=5.0).tolist() == pytest.approx(expected, rel=1e-13)
    plain = (logits - F.one_hot(y, 4)).square().mean(-1)
    assert torch.allclose(rescaled_square_loss(logits, y), plain)


@pytest.mark.parametrize("kind", ["conv", "transformer", "tokens"])
def test_shrinks_wrong_logits(kind: str) -> None:
    def after(method: wp.Method | None) -> float:
        model, task, batch = problem(kind)
        recipe = wp.Recipe(*([method] if method else [])).attach(model, task)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(40):
            recipe.step(batch, optimizer)
        model.eval()
        keep = batch["y"] != -100
        return squentropy_penalty(model(batch["x"])[keep], batch["y"][keep]).mean().item()

    assert after(Squentropy()) < 0.2 * after(None)
    losses = fitted(Squentropy(), kind, steps=20)
    assert losses[-1] < losses[0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        squentropy_penalty(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="k and M above 0"):
        rescaled_square_loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), k=0.0)
