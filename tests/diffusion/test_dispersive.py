"""Dispersive loss."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.diffusion.dispersive import Dispersive, Kind, dispersive_loss
from wellposed.parts.neighbours import squared_distances

KINDS: tuple[Kind, ...] = get_args(Kind)


def points(rows: int = 5, width: int = 4) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_loops(z: Tensor, kind: Kind, tau: float, margin: float) -> float:
    n, d = z.shape
    pairs = [(i, j) for i in range(n) for j in range(n)]
    if kind == "infonce_l2":
        return math.log(sum(math.exp(-float((z[i] - z[j]).square().sum()) / (d * tau)) for i, j in pairs) / n**2)
    if kind == "infonce_cos":
        cos = [float(F.cosine_similarity(z[i], z[j], dim=0)) for i, j in pairs]
        return math.log(sum(math.exp(c / tau) for c in cos) / n**2)
    if kind == "hinge":
        gaps = [max(0.0, margin - float((z[i] - z[j]).square().sum()) / d) ** 2 for i, j in pairs if i != j]
        return sum(gaps) / len(gaps)
    correlations = torch.corrcoef(z.T)
    return sum(float(correlations[i, j]) ** 2 for i in range(d) for j in range(d) if i != j)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 4), (4, 9)])
def test_value_by_explicit_loops(kind: Kind, shape: tuple[int, int]) -> None:
    z = points(*shape)
    found = dispersive_loss(z, kind, tau=0.7, margin=3.0).item()
    assert found == pytest.approx(by_loops(z, kind, 0.7, 3.0), rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient(kind: Kind) -> None:
    assert torch.autograd.gradcheck(lambda z: dispersive_loss(z, kind, 0.7, 3.0), points().requires_grad_())


def test_the_authors_pair_form_is_the_full_mean() -> None:
    """Distances of i < j counted twice, and B zeros for the diagonal."""
    z = points(7, 3)
    d = torch.pdist(z).square() / 3
    theirs = torch.log(torch.exp(-torch.cat([d, d, torch.zeros(7)])).mean())
    torch.testing.assert_close(dispersive_loss(z, tau=1.0), theirs, rtol=1e-12, atol=0)


def test_bounds_are_attained() -> None:
    """Collapsed: 0, with gradient exactly 0 and no NaN. Far apart: log(1/B). Always between."""
    z = torch.full((6, 3), 2.5, dtype=torch.float64, requires_grad=True)
    loss = dispersive_loss(z)
    (g,) = torch.autograd.grad(loss, z)
    assert abs(loss.item()) < 1e-15
    assert (g == 0).all()
    assert dispersive_loss(1e6 * points(6, 3)).item() == pytest.approx(-math.log(6), abs=1e-12)
    for scale in (1e-3, 0.1, 1, 10):
        assert -math.log(5) <= dispersive_loss(scale * points()).item() <= 0


@pytest.mark.parametrize("kind", KINDS)
def test_dead_and_equal_representations_give_no_nan(kind: Kind) -> None:
    for z in (torch.zeros(5, 3), torch.ones(5, 3), torch.ones(1, 3)):
        z = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(dispersive_loss(z, kind), z)
        assert torch.isfinite(g).all()
        assert g.abs().max() < 1e-6


def test_constant_units_are_uncorrelated_at_any_value() -> None:
    """What rounding leaves of them is no correlation."""
    for rows in (7, 12, 33, 1000):
        for value in (0.1, -3.3, 1e-5, 1e4):
            z = points(rows, 4).float()
            z[:, 1] = z[:, 2] = value
            alone = dispersive_loss(z[:, [0, 3]], "cov")
            z.requires_grad_()
            found = dispersive_loss(z, "cov")
            (g,) = torch.autograd.grad(found, z)
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)  # roundings of 2, the diagonal
            assert (g[:, 1:3] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_at_zero_has_no_exploding_gradient(kind: Kind) -> None:
    z = points(6, 4)
    z[2] = 0
    (g,) = torch.autograd.grad(dispersive_loss(z.requires_grad_(), kind), z)
    assert g.abs().max() < 10


def test_distances_survive_a_large_common_offset() -> None:
    z = points(20, 8).float()
    exact = torch.cdist(z.double(), z.double()).square()
    moved = (z.double() + 1000).float()
    torch.testing.assert_close(
        squared_distances(moved).double(), torch.cdist(moved.double(), moved.double()).square(), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(squared_distances(z).double(), exact, rtol=1e-5, atol=1e-5)
    assert (squared_distances(moved).diagonal() == 0).all()


def test_half_precision_is_computed_in_single() -> None:
    z = points(8, 5).bfloat16()
    assert dispersive_loss(z).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        inside = dispersive_loss(z.float())
    assert torch.equal(inside, dispersive_loss(z.float()))


def mlp(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def test_training_spreads_the_layer_out() -> None:
    x, y = torch.randn(32, 6, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 3
    spread = {}
    for strength in (0.0, 1.0):
        model = mlp()
        recipe = wp.Recipe(Dispersive(layer="0", strength=strength)).attach(model, wp.Classify(classes=3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            recipe.step({"x": x, "y": y}, optimizer)
        spread[strength] = squared_distances(model[0](x).detach()).mean()
    assert spread[1.0] > 1.5 * spread[0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_convnet_and_transformer(kind: Kind) -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    transformer = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
    for model, shape in ((conv, (1, 8, 8)), (transformer, (5, 8))):
        recipe = wp.Recipe(Dispersive(layer="0", kind=kind, strength=1e-3)).attach(model, wp.Classify(classes=3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(2))
        terms = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer) for _ in range(10)]
        assert terms[-1]["task"] < terms[0]["task"]


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="kind must be one of infonce_l2, infonce_cos, hinge, cov, got 'l2'"):
        Dispersive(layer="0", kind="l2")  # type: ignore[arg-type]
    with pytest.raises(wp.RecipeError, match="Dispersive taps 'body', which the model does not have"):
        wp.Recipe(Dispersive(layer="body")).attach(mlp(), wp.Classify(classes=3))
