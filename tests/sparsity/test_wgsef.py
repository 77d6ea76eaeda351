"""Group sparse envelope."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.sparsity.wgsef import WGSEF, group_sparse_envelope, prox_group_sparse_envelope


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_map_by_bisection(weighted: bool) -> None:
    """u_g = clip(sqrt(lam d) ||V|| / sqrt(2 mu) - lam d, 0, 1), with mu such that sum u = k."""
    v, k, lam = draw(9, 4), 3, 0.7
    d = torch.arange(1.0, 10.0, dtype=torch.float64) / 4 if weighted else torch.ones(9, dtype=torch.float64)
    norms = v.norm(dim=1)

    def share(mu: float) -> Tensor:
        return ((lam * d).sqrt() * norms / (2 * mu) ** 0.5 - lam * d).clamp(0, 1)

    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if share(2.0**middle).sum() > k else (low, middle)
    u = share(2.0**low)
    wanted = v * (u / (u + lam * d))[:, None]
    torch.testing.assert_close(
        prox_group_sparse_envelope(v, k, lam, d if weighted else None), wanted, rtol=0, atol=1e-12
    )


def test_value_on_sparse_matrices_is_half_the_squared_norm() -> None:
    rows = draw(6, 2, 3, 3)
    few = rows * (torch.arange(6) < 2).view(-1, 1, 1, 1)
    assert group_sparse_envelope(few, 2).item() == pytest.approx(0.5 * few.square().sum().item())
    assert group_sparse_envelope(rows, 2) > 0.5 * rows.square().sum()


def test_one_update_by_the_formula() -> None:
    hidden, head = nn.Linear(5, 8).double(), nn.Linear(8, 3).double()
    model = nn.Sequential(hidden, nn.ReLU(), head)
    plain, x, y = copy.deepcopy(model), draw(12, 5), torch.arange(12) % 3
    recipe = wp.Recipe(WGSEF(keep=0.25, strength=2.0)).attach(model, wp.Classify(classes=3))
    recipe.step({"x": x, "y": y}, torch.optim.SGD(model.parameters(), lr=0.1))
    wp.Recipe().attach(plain, wp.Classify(classes=3)).step(
        {"x": x, "y": y}, torch.optim.SGD(plain.parameters(), lr=0.1)
    )
    before = plain.state_dict()
    wanted = prox_group_sparse_envelope(torch.cat([before["0.weight"], before["0.bias"][:, None]], 1), 2, 0.2)
    found = torch.cat([hidden.weight, hidden.bias[:, None]], 1)
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-14)
    torch.testing.assert_close(head.weight.detach(), before["2.weight"], rtol=0, atol=0)


def conv() -> tuple[nn.Module, Tensor, tuple[str, ...]]:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    return net, torch.randn(12, 1, 8, 8), ()


def transformer() -> tuple[nn.Module, Tensor, tuple[str, ...]]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(12, 5, 8), ("0.linear1",)


@pytest.mark.parametrize("build", [conv, transformer])
def test_trains_and_ships_k_units(build: Any) -> None:
    torch.manual_seed(0)
    model, x, layers = build()
    recipe = wp.Recipe(WGSEF(keep=0.25, strength=1.0, layers=layers)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": x, "y": torch.arange(12) % 3}
    losses = [recipe.step(batch, optimizer)["task"] for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    layer = model[0] if build is conv else model[0].linear1
    trained = layer.weight.detach().clone()
    with recipe.evaluating():
        assert (layer.weight.flatten(1) != 0).any(1).sum() == (2 if build is conv else 4)
    assert torch.equal(layer.weight, trained)
    recipe.finish()
    assert (layer.weight.flatten(1) != 0).any(1).sum() == (2 if build is conv else 4)


def test_refusals() -> None:
    with pytest.raises(wp.RecipeError, match="the model lacks 'head'"):
        wp.Recipe(WGSEF(layers=("head",))).attach(nn.Linear(3, 3), wp.Classify(classes=3))
    model = nn.Linear(3, 3)
    recipe = wp.Recipe(WGSEF()).attach(model, wp.Classify(classes=3))
    torch.autograd.backward(recipe.objective(model, {"x": torch.ones(3, 3), "y": torch.arange(3)}))
    with pytest.raises(ValueError, match=r"call recipe\.update\(optimizer\)"):
        recipe.update()
