"""PolyLoss: the series, the exact gradient of Poly-1, and the focal form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, problem, rows, slope

import wellposed as wp
from wellposed.objectives.poly_loss import PolyLoss, poly_focal_loss, poly_terms


def test_value() -> None:
    logits, y, soft = rows()
    p = F.softmax(logits, -1)
    missing = 1 - p.gather(-1, y[:, None])[:, 0]
    expected = 2 * missing - 0.5 * missing**2 + 3 * missing**3
    assert torch.allclose(poly_terms(logits, y, (2.0, -0.5, 3.0)), expected, rtol=1e-12)
    missing = 1 - (p * soft).sum(-1)
    assert torch.allclose(poly_terms(logits, soft, (1.0, 4.0)), missing + 4 * missing**2, rtol=1e-12)


def test_series_is_the_cross_entropy() -> None:
    """sum_j (1 - p)^j / j = -log p; N terms leave at most (1 - p)^(N + 1) / ((N + 1) p)."""
    p = torch.tensor([0.05, 0.3, 0.9], dtype=torch.float64)
    logits = torch.stack([p.log(), torch.log1p(-p)], -1)
    y = torch.zeros(3, dtype=torch.long)
    n = 500
    short = F.cross_entropy(logits, y, reduction="none") - poly_terms(logits, y, [1 / j for j in range(1, n + 1)])
    assert (short >= -1e-13).all()
    assert (short <= (1 - p) ** (n + 1) / ((n + 1) * p) + 1e-13).all()


@pytest.mark.parametrize("epsilon", [-1.0, 1.0, 2.0])
def test_poly_1_gradient_is_a_multiple_of_cross_entropys(epsilon: float) -> None:
    """1 + epsilon p_t times, exactly, for every p_t."""
    logits, y, _ = rows(scale=5.0)
    ce = F.cross_entropy(logits, y, reduction="none")
    found = slope(ce + poly_terms(logits, y, (epsilon,)), logits)
    factor = 1 + epsilon * (-ce).exp()
    assert torch.allclose(found, factor[:, None] * slope(ce, logits), rtol=0, atol=1e-14)


def test_focal_form() -> None:
    logits, y, _ = rows()
    ce = F.cross_entropy(logits, y, reduction="none")
    missing = 1 - (-ce).exp()
    assert torch.allclose(poly_focal_loss(logits, y, 2.0, 0.7), missing**2 * ce + 0.7 * missing**3)
    assert torch.allclose(poly_focal_loss(logits, y, 0.0, 0.7), ce + poly_terms(logits, y, (0.7,)))
    assert torch.allclose(
        poly_focal_loss(logits, F.one_hot(y, 4).double(), 2.0, 0.7), poly_focal_loss(logits, y, 2.0, 0.7)
    )


def test_gradcheck() -> None:
    logits, y, soft = rows()
    for target in (y, soft):
        assert torch.autograd.gradcheck(lambda f, t=target: poly_terms(f, t, (2.0, -1.0)), logits)
        assert torch.autograd.gradcheck(lambda f, t=target: poly_focal_loss(f, t), logits)


def test_step_adds_the_term() -> None:
    model, task, batch = problem("tokens")
    model.eval()
    recipe = wp.Recipe(PolyLoss(strength=3.0, coefficients=(1.0, 0.5))).attach(model, task)
    recipe.objective(model, batch)
    keep = batch["y"] != -100
    expected = 3 * poly_terms(model(batch["x"])[keep], batch["y"][keep], (1.0, 0.5)).mean()
    assert recipe.update()["PolyLoss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["conv", "transformer", "tokens"])
@pytest.mark.parametrize("strength", [-1.0, 2.0])
def test_trains(kind: str, strength: float) -> None:
    losses = fitted(PolyLoss(strength=strength), kind)
    assert losses[-1] < losses[0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="strength must be at least -1, got"):
        PolyLoss(strength=-1.5)
    with pytest.raises(ValueError, match="at least one number"):
        PolyLoss(coefficients=())
    with pytest.raises(ValueError, match="gamma >= 0"):
        poly_focal_loss(torch.zeros(1, 2), torch.tensor([0]), gamma=-1.0)
