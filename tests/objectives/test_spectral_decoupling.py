"""Spectral decoupling: its value, its fixed point, and the second feature it lets through."""

from __future__ import annotations

import pytest
import torch
from classifiers import fitted, rows
from torch import nn

import wellposed as wp
from wellposed.objectives.spectral_decoupling import SpectralDecoupling, squared_logits


def test_value_by_explicit_loops() -> None:
    logits, y, _ = rows()
    gamma = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    found = squared_logits(logits, gamma[y][:, None])
    expected = [
        sum((float(f) - float(gamma[k])) ** 2 for f in row) / 2 for row, k in zip(logits.tolist(), y, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-13)
    assert torch.autograd.gradcheck(squared_logits, logits)


@pytest.mark.parametrize("strength", [0.01, 0.1, 1.0])
def test_fixed_point_does_not_depend_on_the_features(strength: float) -> None:
    """sigma(-m) = lambda m for the margin of every example, though one feature is ten times stronger."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 12, generator=g, dtype=torch.float64)
    x[:, 0] *= 10
    y = (torch.rand(8, 1, generator=g) < 0.5).double()
    model = nn.Linear(12, 1, bias=False, dtype=torch.float64)
    recipe = wp.Recipe(SpectralDecoupling(strength=strength)).attach(model, wp.Classify(classes=1, multihot=True))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = recipe.objective(model, {"x": x, "y": y})
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    margin = (2 * y - 1) * model(x).detach()
    assert (torch.sigmoid(-margin) - strength * margin).abs().max() < 1e-7


def test_two_softmax_logits_are_the_binary_penalty_at_half_strength() -> None:
    """At a given difference m the cheapest two logits are +-m/2, which cost m^2 / 4."""
    m = torch.tensor([[1.5], [-3.0]])
    both = squared_logits(torch.cat([m / 2, -m / 2], 1))
    assert torch.allclose(both, squared_logits(m) / 2)
    assert (squared_logits(torch.cat([m / 2 + 0.1, 0.1 - m / 2], 1)) > both).all()


def test_several_true_classes_take_the_mean_over_logits() -> None:
    model = nn.Linear(4, 5)
    x, y = torch.randn(6, 4), (torch.rand(6, 5) < 0.5).float()
    terms = (
        wp.Recipe(SpectralDecoupling(strength=2.0))
        .attach(model, wp.Classify(classes=5, multihot=True))
        .step({"x": x, "y": y}, torch.optim.SGD(model.parameters(), lr=0.0))
    )
    assert terms["SpectralDecoupling"].item() == pytest.approx(model(x).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["conv", "transformer", "tokens"])
def test_trains(kind: str) -> None:
    losses = fitted(SpectralDecoupling(strength=0.1), kind)
    assert losses[-1] < losses[0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="strength must be at least 0, got -1"):
        SpectralDecoupling(strength=-1.0)
    with pytest.raises(
        wp.RecipeError, match="SpectralDecoupling works with class or multihot or token targets; task Regress"
    ):
        wp.Recipe(SpectralDecoupling()).attach(nn.Linear(4, 1), wp.Regress())
