"""Mixed Barlow Twins."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from pairs import views
from torch import Tensor, nn

import wellposed as wp
from wellposed.papers.nets import ConvNet, Transformer, seeded
from wellposed.selfsup import mixed_barlow_twins as module
from wellposed.selfsup.barlow_twins import barlow_twins, standardised
from wellposed.selfsup.mixed_barlow_twins import MixedBarlowTwins, mixed_correlation_gap

ORDER = torch.tensor([3, 0, 4, 1, 5, 2])


def by_correlations(z1: Tensor, z2: Tensor, mixed: Tensor, share: float) -> float:
    """The paper's two terms: correlations of the mixed batch, and the mixtures of correlations they should be."""
    z1, z2, mixed = (standardised(z) for z in (z1, z2, mixed))

    def c(a: Tensor, b: Tensor) -> Tensor:
        return a.T @ b / len(a)

    first = c(mixed, z1) - share * c(z1, z1) - (1 - share) * c(z2[ORDER], z1)
    second = c(mixed, z2) - share * c(z1, z2) - (1 - share) * c(z2[ORDER], z2)
    return float(first.square().sum() + second.square().sum())


@pytest.mark.parametrize("width", [3, 20])
def test_value_by_the_correlations_themselves(width: int) -> None:
    z1, z2 = views(6, width)
    mixed = views(6, width, seed=1)[0]
    expected = by_correlations(z1, z2, mixed, 0.3)
    found = mixed_correlation_gap(z1, z2, mixed, ORDER, 0.3)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(mixed_correlation_gap(z1, z2, mixed, ORDER, torch.full((6, 1), 0.3)), found)


def test_gradient() -> None:
    z1, z2 = (z.requires_grad_() for z in views(6, 3))
    mixed = views(6, 3, seed=1)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, m: mixed_correlation_gap(a, b, m, ORDER, 0.3), (z1, z2, mixed))


def test_a_linear_encoder_costs_nothing_unless_standardised(monkeypatch: pytest.MonkeyPatch) -> None:
    x1, x2 = views(6, 4)
    weight = views(4, 3, seed=2)[0]

    def embed(x: Tensor) -> Tensor:
        return x @ weight + 1

    mixed = embed(0.3 * x1 + 0.7 * x2[ORDER])
    found = partial(mixed_correlation_gap, embed(x1), embed(x2), mixed, ORDER, 0.3)
    assert found().item() > 1e-3
    monkeypatch.setattr(module, "standardised", lambda z, eps: z)
    assert found().item() < 1e-26


def trial(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    if kind == "conv":
        return seeded(0, ConvNet, 4), {k: torch.rand(12, 1, 8, 8, generator=g) for k in ("x1", "x2")}
    net = seeded(0, Transformer, 5, 4, size=3, width=8, pooled=True)
    return net, {k: torch.rand(12, 5, 3, generator=g) for k in ("x1", "x2")}


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    ends = []
    for strength in (1e-6, 20.0):
        model, batch = trial(kind)
        method = MixedBarlowTwins(strength=strength)
        recipe = wp.Recipe(method).attach(model, wp.TwoViews(barlow_twins), example=batch)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        terms = [recipe.step(batch, optimizer) for _ in range(30)]
        assert terms[-1]["task"] < 0.5 * terms[0]["task"]
        ends.append(sum(float(t["MixedBarlowTwins"]) for t in terms[-5:]) / strength)
    if kind == "transformer":  # one hidden layer of ReLUs is so nearly linear that the floor of standardising is all
        assert ends[1] < 0.8 * ends[0]


def test_the_mixed_batch_is_what_the_term_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """One extra pass over as many inputs as one view has, be they odd, and the term is the function's."""
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return self.inner(x).tanh()

    model, (x1, x2) = Spy(), views(7, 4)
    called: list[Any] = []

    def spied(*args: Any) -> Tensor:
        called.extend(args)
        return mixed_correlation_gap(*args)

    monkeypatch.setattr(module, "mixed_correlation_gap", spied)
    recipe = wp.Recipe(MixedBarlowTwins(strength=2.0, redundancy=0.1)).attach(model, wp.TwoViews(barlow_twins))
    terms = recipe.step({"x1": x1, "x2": x2}, torch.optim.SGD(model.parameters(), lr=0.0))
    z1, z2, mixed, partner, share = called
    assert [len(x) for x in seen] == [14, 7]
    torch.testing.assert_close(seen[1], share * x1 + (1 - share) * x2[partner])
    assert torch.equal(partner.sort().values, torch.arange(7))
    torch.testing.assert_close(mixed, model.inner(seen[1]).tanh())
    expected = 0.2 * mixed_correlation_gap(z1, z2, mixed, partner, share)
    torch.testing.assert_close(terms["MixedBarlowTwins"], expected.detach())


def test_refused() -> None:
    model = nn.Embedding(5, 3)
    recipe = wp.Recipe(MixedBarlowTwins()).attach(model, wp.TwoViews(lambda a, b: (a - b).square().mean()))
    ids = torch.arange(4)
    with pytest.raises(TypeError, match="MixedBarlowTwins mixes real inputs"):
        recipe.step({"x1": ids, "x2": ids}, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(wp.RecipeError, match="x1"):
        wp.Recipe(MixedBarlowTwins()).attach(nn.Linear(2, 2), wp.Classify(classes=2))
