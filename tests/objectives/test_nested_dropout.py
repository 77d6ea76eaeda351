"""Nested dropout: masks, distributions of the length, order of features, and cutting afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from classifiers import fitted, problem
from torch import Tensor, nn

import wellposed as wp
from wellposed.objectives.nested_dropout import NestedDropout, best_truncation, keep_first, kept_lengths, truncate
from wellposed.smoothness.sam import SAM


@pytest.mark.parametrize(("shape", "dim"), [((3, 5), 1), ((3, 5), -1), ((3, 5, 2, 2), 1), ((3, 4, 5), -1)])
def test_masks_by_explicit_loops(shape: tuple[int, ...], dim: int) -> None:
    x = torch.randn(shape).requires_grad_()
    k = torch.tensor([1, 5, 3])
    found = keep_first(x, k, dim)
    for i in range(3):
        for j in range(5):
            expected = x[i].select(dim % len(shape) - 1, j) * (1 if j < k[i] else 0)
            assert torch.equal(found[i].select(dim % len(shape) - 1, j), expected)
    assert torch.equal(keep_first(x, 2, dim), keep_first(x, torch.full((3,), 2), dim))


def test_lengths_follow_their_distribution() -> None:
    torch.manual_seed(0)
    count, width, scale = 200_000, 40, 0.25
    deviation = scale * width

    def below(x: float) -> float:  # of |N(0, deviation^2)|
        return math.erf(x / deviation / math.sqrt(2))

    k = kept_lengths(count, width, scale)
    for length in (1, 7, width):
        low = 0.0 if length == 1 else below(length - 0.5)
        high = 1.0 if length == width else below(length + 0.5)
        p = high - low
        assert abs(float((k == length).float().mean()) - p) < 5 * math.sqrt(p * (1 - p) / count)
    k = kept_lengths(count, width, scale, "geometric")
    for length in (1, 7):
        p = (1 - 1 / deviation) ** (length - 1) / deviation
        assert abs(float((k == length).float().mean()) - p) < 5 * math.sqrt(p * (1 - p) / count)
    assert k.min() == 1
    assert k.max() == width
    assert kept_lengths(5, 4, 0.2, "geometric").tolist() == [1] * 5  # a mean below one feature


def test_only_training_is_cut_and_the_model_is_given_back() -> None:
    model, task, batch = problem("conv")
    before = model.eval()(batch["x"])
    recipe = wp.Recipe(NestedDropout(layer="2", scale=0.01)).attach(model, task)
    assert torch.equal(model(batch["x"]), before)
    seen: list[Tensor] = []
    handle = model[3].register_forward_pre_hook(lambda module, args: seen.append(args[0]))  # type: ignore[index]
    model.train()
    recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.0))
    assert seen[0][:, 0].any()
    assert not seen[0][:, 1:].any()  # one of four channels survives
    handle.remove()
    recipe.detach()
    assert not model[2]._forward_hooks  # type: ignore[index]


def test_second_pass_of_an_update_repeats_the_lengths() -> None:
    model, task, batch = problem("conv")
    recipe = wp.Recipe(SAM(rho=0.0001), NestedDropout(layer="2")).attach(model, task)
    seen: list[Tensor] = []
    model[3].register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(2).any(2)))  # type: ignore[index]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recipe.step(batch, optimizer)
    recipe.step(batch, optimizer)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_first_features_carry_the_most() -> None:
    """Trained on a problem that one feature can solve, cutting to one feature keeps the accuracy."""
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))
    recipe = wp.Recipe(NestedDropout(layer="1", scale=0.1)).attach(model, wp.Classify(classes=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        recipe.step({"x": x, "y": y}, optimizer)
    recipe.finish().eval()
    best, found = best_truncation(model, "1", x, y, (1, 2, 4, 32))
    assert found[1] > 0.9
    assert best == min(k for k in found if found[k] == max(found.values()))
    full = model(x)
    with truncate(model, "1", 32):
        assert torch.equal(model(x), full)
    with truncate(model, "1", 1):
        cut = model(x)
    by_hand = model[1](model[0](x))[:, :1] @ model[2].weight[:, :1].T + model[2].bias  # type: ignore[index]
    assert torch.allclose(cut, by_hand, atol=1e-6)
    assert torch.equal(model(x), full)


@pytest.mark.parametrize(
    ("kind", "layer", "dim"), [("conv", "2", 1), ("transformer", "block", -1), ("tokens", "block", -1)]
)
def test_trains(kind: str, layer: str, dim: int) -> None:
    losses = fitted(NestedDropout(layer=layer, dim=dim), kind)
    assert losses[-1] < losses[0]


def test_bad_input() -> None:
    with pytest.raises(wp.RecipeError, match="the model has no submodule 'head'"):
        wp.Recipe(NestedDropout(layer="head")).attach(nn.Sequential(nn.Linear(2, 2)), wp.Classify())
    with pytest.raises(wp.RecipeError, match="layer must name the submodule"):
        wp.Recipe(NestedDropout(layer="")).attach(nn.Linear(2, 2), wp.Classify())
    with pytest.raises(ValueError, match="distribution must be 'normal' or 'geometric', got 'uniform'"):
        NestedDropout(layer="0", distribution="uniform")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not 0"):
        NestedDropout(layer="0", dim=0)
    with pytest.raises(ValueError, match="at least 1 feature"):
        truncate(nn.Sequential(nn.Linear(2, 2)), "0", 0)
    with pytest.raises(ValueError, match="at least one length"):
        best_truncation(nn.Linear(2, 2), "", torch.zeros(1, 2), torch.zeros(1), ())
