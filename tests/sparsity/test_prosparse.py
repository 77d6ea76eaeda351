"""ProSparse and the tools around it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.sparsity.prosparse import (
    FATReLU,
    ProSparse,
    activation_norm,
    activation_sparsity,
    fat_relu,
    relufy,
    sine_stages,
)


def mlp(act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 64), act(), nn.Linear(64, 3))


def batch(*shape: int) -> dict[str, Tensor]:
    return {"x": torch.randn(24, *shape, generator=torch.Generator().manual_seed(1)), "y": torch.arange(24) % 3}


def test_norm_of_each_layout_by_loops() -> None:
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(3, 5, 4, generator=g, dtype=torch.float64)
    space = torch.randn(3, 4, 2, 6, generator=g, dtype=torch.float64)
    for b in range(3):
        assert activation_norm(rows)[b].item() == pytest.approx(sum(abs(v) for v in rows[b].tolist()))
        per_token = [sum(abs(v) for v in t) for t in tokens[b].tolist()]
        assert activation_norm(tokens)[b].item() == pytest.approx(sum(per_token) / 5)
        per_place = [space[b, :, i, j].abs().sum().item() for i in range(2) for j in range(6)]
        assert activation_norm(space)[b].item() == pytest.approx(sum(per_place) / 12)
    assert torch.autograd.gradcheck(activation_norm, rows)
    assert activation_norm(torch.full((2, 3), 300.0, dtype=torch.bfloat16)).dtype == torch.float32


def test_penalty_averages_layers_and_samples() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    recipe = wp.Recipe(ProSparse(strength=0.5)).attach(model, wp.Classify(classes=3))
    b = batch(6)
    first = model[:2](b["x"])
    second = model[2:4](first)
    wanted = 0.5 * (first.sum(1) + second.sum(1)).mean().detach() / 2
    found = recipe.step(b, torch.optim.SGD(model.parameters(), lr=0.1))["ProSparse"]
    torch.testing.assert_close(found, wanted)


def test_schedule_has_zero_slope_at_milestones_and_rises_between() -> None:
    s = sine_stages(0.03)
    assert s(0.0) == s(0.05) == s(0.1) == pytest.approx(0.0015)
    assert s(0.5) == pytest.approx(0.0075)
    assert s(1.0) == pytest.approx(0.03)
    h = 1e-5
    for at in (0.1, 0.5, 1.0 - h):
        assert abs(s(at + h) - s(at - h)) / (2 * h) < 1e-5
    assert s(0.3) == pytest.approx((0.0015 + 0.0075) / 2)
    values = [s(i / 100) for i in range(10, 101)]
    assert all(b > a for a, b in pairwise(values))


def test_fat_relu_keeps_the_threshold_and_shifts_nothing() -> None:
    x = torch.tensor([-1.0, 0.0, 0.05, 0.1, 0.2], dtype=torch.float64, requires_grad=True)
    assert fat_relu(x, 0.1).tolist() == [0, 0, 0, 0.1, 0.2]
    assert torch.equal(fat_relu(x, 0.0), torch.relu(x))
    (g,) = torch.autograd.grad(FATReLU(0.1)(x).sum(), x)
    assert g.tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="tau must be at least 0, got -1"):
        FATReLU(-1.0)


def test_relufy_replaces_smooth_activations_only() -> None:
    model = nn.Sequential(
        nn.Linear(6, 4), nn.SiLU(), nn.Sequential(nn.Linear(4, 4), nn.GELU()), nn.ReLU(), nn.Sigmoid()
    )
    kept = model[3]
    assert relufy(model) is model
    assert type(model[1]) is type(model[2][1]) is nn.ReLU
    assert model[3] is kept
    assert type(model[4]) is nn.Sigmoid
    relufy(model, tau=0.02)
    assert isinstance(model[3], FATReLU)
    assert model[3].tau == 0.02
    assert isinstance(relufy(nn.GELU()), nn.ReLU)
    with pytest.raises(ValueError, match="relufy found no activation module to replace"):
        relufy(nn.Linear(2, 2))


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_relufied_transformer_computes_the_same_in_evaluation(tau: float) -> None:
    """PyTorch's fused evaluation of an encoder layer must not go on with the old activation."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.GELU(), batch_first=True)
    relufy(layer, tau)
    x = torch.randn(3, 5, 8)
    wanted = layer.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), wanted)


def test_sparsity_is_counted_exactly_and_leaves_no_trace() -> None:
    model = mlp()
    b = batch(6)
    zeros = (model[:2](b["x"]) == 0).float().mean().item()
    model.train()
    assert activation_sparsity(model, [b["x"][:10], {"x": b["x"][10:]}]) == {"1": pytest.approx(zeros)}
    assert model.training
    assert not model[1]._forward_hooks
    assert activation_sparsity(model, [b["x"]], layers=("0",)) == {"0": 0.0}
    with pytest.raises(wp.RecipeError, match="activation_sparsity looks at ReLU modules and the model has none"):
        activation_sparsity(mlp(nn.GELU), [b["x"]])


def test_training_makes_activations_sparse() -> None:
    shares = {}
    for strength in (0.0, 0.1):
        model = mlp()
        recipe = wp.Recipe(ProSparse(strength=strength)).attach(model, wp.Classify(classes=3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(60):
            recipe.step(batch(6), optimizer)
        shares[strength] = activation_sparsity(model, [batch(6)])["1"]
    assert shares[0.1] > shares[0.0] + 0.15


def test_convnet_and_transformer() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    encoder = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU(), batch_first=True)
    transformer = relufy(nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, 3)))
    for model, shape in ((conv, (1, 8, 8)), (transformer, (5, 8))):
        recipe = wp.Recipe(ProSparse()).attach(model, wp.Classify(classes=3), steps=15)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        terms = [recipe.step(batch(*shape), optimizer) for _ in range(15)]
        assert terms[-1]["task"] < terms[0]["task"]
        assert all(math.isfinite(t["ProSparse"]) for t in terms)
        recipe.detach()


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(wp.RecipeError, match="ProSparse looks at ReLU modules and the model has none; name layers"):
        wp.Recipe(ProSparse()).attach(mlp(nn.GELU), wp.Classify(classes=3))
    model = mlp()
    with pytest.raises(wp.RecipeError, match="ProSparse taps '7', which the model does not have"):
        wp.Recipe(ProSparse(layers=("7",))).attach(model, wp.Classify(classes=3))
    recipe = wp.Recipe(ProSparse()).attach(model, wp.Classify(classes=3))
    with pytest.raises(ValueError, match="is a schedule and needs to know how far training is"):
        recipe.step(batch(6), torch.optim.SGD(model.parameters(), lr=0.1))
