"""Random pruning at initialisation."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.sparsity.random_pruning import RandomPruning, Ratio, densities_of_scores, layer_densities

SHAPES = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 1, 1), (10, 64)]


@pytest.mark.parametrize("ratio", get_args(Ratio))
@pytest.mark.parametrize("density", [0.05, 0.2, 0.6, 1.0])
def test_total_is_met_and_no_layer_exceeds_one(ratio: Ratio, density: float) -> None:
    found = layer_densities(SHAPES, density, ratio)
    sizes = [torch.Size(s).numel() for s in SHAPES]
    assert sum(d * n for d, n in zip(found, sizes, strict=True)) == pytest.approx(density * sum(sizes), rel=1e-12)
    assert all(0 <= d <= 1 for d in found)


@pytest.mark.parametrize("density", [0.03, 0.2, 0.5])
def test_erk_by_bisection(density: float) -> None:
    """d = min(1, eps * raw), with the eps that meets the total."""
    sizes = [torch.Size(s).numel() for s in SHAPES]
    raw = [(o + i + sum(k)) / n for (o, i, *k), n in zip(SHAPES, sizes, strict=True)]
    low, high = 0.0, 1e6
    for _ in range(200):
        eps = (low + high) / 2
        total = sum(min(1, eps * r) * n for r, n in zip(raw, sizes, strict=True))
        low, high = (eps, high) if total < density * sum(sizes) else (low, eps)
    assert layer_densities(SHAPES, density, "erk") == pytest.approx([min(1, low * r) for r in raw], rel=1e-9)


def test_rules_differ_as_they_should() -> None:
    linear = [(30, 20), (10, 30)]
    assert layer_densities(linear, 0.2, "er") == layer_densities(linear, 0.2, "erk")
    assert layer_densities(linear, 0.2, "uniform") == pytest.approx([0.2, 0.2])
    assert layer_densities(SHAPES, 0.2, "erk+")[-1] == 1.0
    assert layer_densities(SHAPES, 0.01, "erk+") == layer_densities(SHAPES, 0.01, "erk")  # no room for a dense head
    with pytest.raises(ValueError, match="above 0 and at most 1, got 0"):
        layer_densities(SHAPES, 0.0)


def test_ratios_of_scores() -> None:
    scores = [torch.tensor([5.0, 4.0, 0.1, 0.2]), torch.tensor([3.0, 0.3])]
    assert densities_of_scores(scores, 0.5) == [0.5, 0.5]
    assert densities_of_scores(scores, 1 / 3) == [0.5, 0.0]


def conv() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    ), torch.randn(12, 1, 8, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(12, 5, 8)


@pytest.mark.parametrize("build", [conv, transformer])
@pytest.mark.parametrize("rescale", [False, True])
def test_hidden_weights_stay_zero_under_any_optimizer(build: Any, rescale: bool) -> None:
    torch.manual_seed(0)
    model, x = build()
    method = RandomPruning(density=0.3, rescale=rescale)
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=3))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    zeros = [m.weight == 0 for m in layers]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    losses = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)["task"] for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    recipe.detach()
    assert all(torch.equal(m.weight == 0, z) for m, z in zip(layers, zeros, strict=True))
    kept = sum(int((~z).sum()) for z in zeros)
    assert abs(kept - 0.3 * sum(z.numel() for z in zeros)) <= len(zeros) / 2


def test_masks_depend_on_seed_and_layer() -> None:
    def mask(seed: int) -> Tensor:
        layer = nn.Linear(20, 20)
        wp.Recipe(RandomPruning(seed=seed)).attach(layer, wp.Classify(classes=20))
        return layer.weight.detach() != 0

    assert torch.equal(mask(1), mask(1))
    assert not torch.equal(mask(1), mask(2))
    two = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    wp.Recipe(RandomPruning()).attach(two, wp.Classify(classes=20)).detach()
    one, other = (p != 0 for p in two.parameters() if p.ndim == 2)
    assert not torch.equal(one, other)


def test_rescaling_keeps_the_variance() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 100)
    square = layer.weight.square().sum().item()
    wp.Recipe(RandomPruning(density=0.25, rescale=True)).attach(layer, wp.Classify(classes=100))
    assert layer.weight.square().sum().item() == pytest.approx(square, rel=0.1)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="ratio must be one of uniform, er, erk, erk\\+, got 'snip'"):
        RandomPruning(ratio="snip")  # type: ignore[arg-type]
    with pytest.raises(wp.RecipeError, match="'head' is not there"):
        wp.Recipe(RandomPruning(layers=("head",))).attach(nn.Linear(3, 3), wp.Classify(classes=3))
