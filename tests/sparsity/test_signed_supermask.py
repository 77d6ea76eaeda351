"""Signed supermasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.sparsity.signed_supermask import SignedSupermask, mask_stats, signed_mask


def test_mask_by_sorting() -> None:
    scores = torch.tensor([[0.5, -2.0, 0.1], [-0.3, 1.0, 0.0]])
    assert signed_mask(scores, 3).tolist() == [[1, -1, 0], [0, 1, 0]]
    assert signed_mask(scores, 2, signed=False).tolist() == [[1, 0, 0], [0, 1, 0]]


def attached(layer: nn.Linear, **settings: Any) -> tuple[nn.Linear, Tensor]:
    """A layer under the method, and its scores."""
    wp.Recipe(SignedSupermask(**settings)).attach(layer, wp.Classify(classes=3))
    return layer, dict(layer.named_parameters())["parametrizations.weight.original"]


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
def test_weights_take_three_values_and_keep_their_variance(density: float) -> None:
    """sigma^2 = 2 / (fan-in * density): a unit's weights have the sum of squares that He initialisation gives them."""
    torch.manual_seed(0)
    layer, _ = attached(nn.Linear(40, 30), density=density)
    w = layer.weight.detach()
    sigma = (2 / (40 * (round(density * 1200) / 1200))) ** 0.5
    assert {round(abs(v), 5) for v in w.flatten().tolist()} == ({round(sigma, 5)} | ({0.0} if density < 1 else set()))
    assert (w != 0).sum() == round(density * 1200)
    assert w.square().sum().item() / 30 == pytest.approx(2.0, rel=1e-5)


def test_frozen_signs_are_those_of_the_initial_weights() -> None:
    plain = nn.Linear(40, 30)
    start = plain.weight.detach().sign()
    layer, scores = attached(plain)
    kept = layer.weight.detach() != 0
    assert torch.equal((layer.weight.detach().sign() * scores.sign())[kept], start[kept])


def test_gradient_of_a_score_is_the_weights_times_the_constant() -> None:
    layer, scores = attached(nn.Linear(6, 3))
    x = torch.randn(5, 6)
    [grad] = torch.autograd.grad(layer(x).sum(), [scores])
    base = layer.parametrizations.weight[0].base  # type: ignore[union-attr, index]
    torch.testing.assert_close(grad, x.sum(0) * base)


def test_draw_of_scores_is_xavier_and_repeats() -> None:
    same, other = attached(nn.Linear(400, 200), seed=1)[1], attached(nn.Linear(400, 200), seed=2)[1]
    assert torch.equal(same, attached(nn.Linear(400, 200), seed=1)[1])
    assert not torch.equal(same, other)
    bound = (6 / 600) ** 0.5
    assert same.abs().max() <= bound
    assert same.var().item() == pytest.approx(bound**2 / 3, rel=0.02)


def test_threshold_hides_small_scores() -> None:
    layer, scores = attached(nn.Linear(40, 30), threshold=0.1)
    assert torch.equal(layer.weight != 0, scores.abs() > 0.1)
    assert layer.weight.square().sum().item() / 30 == pytest.approx(2.0, rel=1e-5)


def conv() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    ), torch.randn(12, 1, 8, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(12, 5, 8)


@pytest.mark.parametrize("build", [conv, transformer])
@pytest.mark.parametrize("signed", [True, False])
def test_learns_by_masks_alone(build: Any, signed: bool) -> None:
    torch.manual_seed(0)
    model, x = build()
    recipe = wp.Recipe(SignedSupermask(density=0.5, signed=signed)).attach(model, wp.Classify(classes=3))
    scores = [p for n, p in model.named_parameters() if n.endswith("original")]
    optimizer = torch.optim.AdamW(scores, lr=0.02)
    losses = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)["task"] for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    stats = mask_stats(model)
    assert len(stats) == len(scores)
    for share in stats.values():
        assert sum(share.values()) == pytest.approx(1)
        assert share["hidden"] == pytest.approx(0.5, abs=0.01)
        assert (share["inverted"] > 0) == signed
    recipe.detach()
    assert mask_stats(model) == {}


def test_refusals() -> None:
    with pytest.raises(ValueError, match="threshold must be at least 0, got -1"):
        SignedSupermask(threshold=-1.0)
    with pytest.raises(wp.RecipeError, match="cannot mask 'head'"):
        wp.Recipe(SignedSupermask(layers=("head",))).attach(nn.Linear(3, 3), wp.Classify(classes=3))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(wp.RecipeError, match="no trainable, unshared weight to mask"):
        wp.Recipe(SignedSupermask()).attach(model, wp.Classify(classes=3))
