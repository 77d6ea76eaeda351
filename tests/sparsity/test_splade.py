"""SPLADE."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.sparsity.splade import (
    FLOPS,
    QuadraticRise,
    expected_flops,
    flops_regularizer,
    log_saturation,
    splade_pooling,
)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_value_by_loops_and_gradient() -> None:
    a = draw(5, 7)
    total = sum((sum(abs(float(a[n, j])) for n in range(5)) / 5) ** 2 for j in range(7))
    assert flops_regularizer(a).item() == pytest.approx(total, rel=1e-13)
    assert torch.autograd.gradcheck(flops_regularizer, (a.requires_grad_(),))


def test_even_use_is_cheapest_at_equal_l1_norm() -> None:
    even, uneven = torch.eye(4), torch.zeros(4, 4).index_fill(1, torch.tensor([0]), 1.0)
    assert flops_regularizer(even) == pytest.approx(4 * (1 / 4) ** 2)
    assert flops_regularizer(uneven) == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["max", "sum"])
def test_pooling_by_loops_ignores_padding(mode: str) -> None:
    x = draw(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0]])
    found = splade_pooling(x, mask, mode)  # type: ignore[arg-type]
    for b in range(2):
        for j in range(3):
            values = [math.log1p(max(float(x[b, t, j]), 0)) for t in range(4) if mask[b, t]]
            assert found[b, j].item() == pytest.approx(max(values) if mode == "max" else sum(values), rel=1e-13)
    torch.testing.assert_close(splade_pooling(x), log_saturation(x).amax(1), rtol=0, atol=0)
    with pytest.raises(ValueError, match="'max' or 'sum', got 'mean'"):
        splade_pooling(x, mode="mean")  # type: ignore[arg-type]


def test_expected_multiplications_by_counting_pairs() -> None:
    q, d = draw(5, 6).relu(), draw(7, 6).relu()
    counted = sum(int(((a != 0) & (b != 0)).sum()) for a in q for b in d) / 35
    assert expected_flops(q, d).item() == pytest.approx(counted, rel=1e-13)


def test_rise_is_quadratic_and_saved() -> None:
    rise = QuadraticRise(0.3, portion=0.5)
    assert [rise(t) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.075, 0.3, 0.3])
    recipe = wp.Recipe(FLOPS(strength=rise))
    assert repr(wp.load_recipe(recipe.to_toml())) == repr(recipe)


def test_each_side_has_its_own_mean() -> None:
    model = nn.Linear(4, 6, dtype=torch.float64)
    batch = {"x1": draw(5, 4), "x2": draw(5, 4) + 1}
    recipe = wp.Recipe(FLOPS(strength=0.5)).attach(model, wp.TwoViews())
    terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.0))
    wanted = 0.5 * (flops_regularizer(model(batch["x1"])) + flops_regularizer(model(batch["x2"])))
    torch.testing.assert_close(terms["FLOPS"], wanted.detach(), rtol=1e-13, atol=0)
    recipe.detach()
    recipe = wp.Recipe(FLOPS(strength=0.5, keys=("z1",))).attach(model, wp.TwoViews())
    terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.0))
    torch.testing.assert_close(terms["FLOPS"], 0.5 * flops_regularizer(model(batch["x1"])).detach())
    with pytest.raises(wp.RecipeError, match="FLOPS needs 'z3'"):
        wp.Recipe(FLOPS(keys=("z3",))).attach(model, wp.TwoViews())


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_layers_of_other_nets(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "conv":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
        )
        x, layers = torch.randn(12, 1, 8, 8), ()
    else:
        encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, 3))
        x, layers = torch.randn(12, 5, 8), ("0.linear1",)  # type: ignore[assignment]
    recipe = wp.Recipe(FLOPS(strength=0.1, layers=layers)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    terms = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer) for _ in range(30)]
    assert terms[-1]["FLOPS"] < terms[0]["FLOPS"]
    assert terms[-1]["task"] < terms[0]["task"]
