"""LOBSTER."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.sparsity.lobster import LOBSTER, find_prune_threshold, insensitivity


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 3, dtype=torch.float64)


def batch() -> dict[str, Tensor]:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {"x": x, "y": torch.arange(12) % 3}


def test_insensitivity_and_its_ends() -> None:
    grad = torch.tensor([0.0, 0.25, -0.5, 1.0, -3.0])
    assert insensitivity(grad).tolist() == [1.0, 0.75, 0.5, 0.0, 0.0]
    assert insensitivity(grad, 2.0).tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0])
def test_update_by_the_formula(scale: float) -> None:
    model, data = linear(), batch()
    w, b = model.weight.detach().clone(), model.bias.detach().clone()
    g, gb = torch.autograd.grad(nn.functional.cross_entropy(model(data["x"]), data["y"]), [model.weight, model.bias])
    recipe = wp.Recipe(LOBSTER(strength=0.01, scale=scale)).attach(model, wp.Classify(classes=3))
    recipe.step(data, torch.optim.SGD(model.parameters(), lr=0.3))
    for i in range(3):
        for j in range(6):
            gamma = max(0.0, 1 - scale * abs(float(g[i, j])))
            wanted = float(w[i, j]) - 0.3 * float(g[i, j]) - 0.01 * float(w[i, j]) * gamma
            assert model.weight[i, j].item() == pytest.approx(wanted, rel=1e-13)
    torch.testing.assert_close(model.bias.detach(), b - 0.3 * gb, rtol=0, atol=1e-15)


def test_without_gradient_it_is_plain_decay() -> None:
    model = linear()
    w = model.weight.detach().clone()
    recipe = wp.Recipe(LOBSTER(strength=0.1)).attach(model, wp.Classify(classes=3))
    step_without_gradient = {"x": torch.zeros(3, 6, dtype=torch.float64), "y": torch.arange(3)}
    recipe.step(step_without_gradient, torch.optim.SGD([model.weight], lr=1.0))
    torch.testing.assert_close(model.weight.detach(), 0.9 * w, rtol=1e-14, atol=0)


def test_threshold_is_the_largest_that_the_loss_allows() -> None:
    """The loss is 1 + the number of zeros: a rise of 40 % allows for 4 of 10."""
    w = torch.arange(1.0, 11.0, dtype=torch.float64)[torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    kept = w.clone()
    threshold = find_prune_threshold([w], lambda: 10 + float((w == 0).sum()), rise=0.4, iterations=30)
    assert torch.equal(w, kept)
    assert threshold == pytest.approx(5.0, abs=1e-6)
    assert threshold <= 5.0
    assert find_prune_threshold([w], lambda: 10 + float((w == 0).sum()), rise=0.0) <= 1.0


def conv() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    ), torch.randn(12, 1, 8, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(12, 5, 8)


@pytest.mark.parametrize("build", [conv, transformer])
def test_prunes_in_rounds_and_pruned_weights_stay_zero(build: Any) -> None:
    torch.manual_seed(0)
    model, x = build()
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.detach().clone()
    method, y = LOBSTER(strength=1e-3, rise=0.1), torch.arange(12) % 3
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)

    def validate() -> float:
        with recipe.evaluating() as m, torch.no_grad():
            return float(nn.functional.cross_entropy(m(x), y))

    shares = []
    for _ in range(3):
        for _ in range(10):
            recipe.step({"x": x, "y": y}, optimizer)
        limit = 1.1 * validate()
        shares.append(method.prune(validate))
        assert validate() <= limit
    assert 0 < shares[0] <= shares[1] <= shares[2]
    recipe.step({"x": x, "y": y}, optimizer)
    weights = [p for p in model.parameters() if p.ndim >= 2 and p.requires_grad]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(shares[-1], abs=1e-6)
    assert torch.equal(frozen, before)


def test_pruning_needs_a_model() -> None:
    with pytest.raises(RuntimeError, match="attach the recipe first"):
        LOBSTER().prune(lambda: 1.0)
