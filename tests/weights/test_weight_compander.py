"""Weight compander."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import wellposed as wp
from wellposed.weights.weight_compander import Compander, WeightCompander, compand, expand


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


def batch() -> dict[str, Tensor]:
    return {"x": torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), "y": torch.arange(12) % 3}


def test_value_round_trip_and_gradient() -> None:
    v = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    a, b = scalar(0.7).requires_grad_(), scalar(0.4).requires_grad_()
    w = compand(v, a, b)
    for x, y in zip(v.tolist(), w.tolist(), strict=True):
        assert y == pytest.approx(0.7 * math.atan(x / 0.4))
    torch.testing.assert_close(expand(w, a, b), v, rtol=1e-12, atol=1e-12)
    (g,) = torch.autograd.grad(w.sum(), v)
    torch.testing.assert_close(g, (0.7 / 0.4) / (1 + (v.detach() / 0.4) ** 2))
    assert torch.autograd.gradcheck(compand, (v, a, b))
    assert torch.autograd.gradcheck(expand, (w.detach().requires_grad_(), a, b))


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("a", [0.64, 1.0, 4.0])
def test_attaching_leaves_the_weights_as_they_were(a: float, learnable: bool) -> None:
    model = mlp().double()
    kept = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # made before attach: it must still train the weights
    recipe = wp.Recipe(WeightCompander(a=a, b=0.5, learnable=learnable)).attach(model, wp.Classify(classes=3))
    torch.testing.assert_close(model[0].weight.detach(), kept, rtol=0, atol=1e-12)
    recipe.step({**batch(), "x": batch()["x"].double()}, optimizer)
    assert not torch.allclose(model[0].weight.detach(), kept, rtol=0, atol=1e-12)


def test_weights_cannot_leave_the_bound() -> None:
    """However far the parameters run, |w| < a pi / 2."""
    model = mlp()
    top = float(model[0].weight.detach().abs().max())
    wp.Recipe(WeightCompander(a=1.5)).attach(model, wp.Classify(classes=3))
    with torch.no_grad():
        model[0].parametrizations["weight"].original.mul_(1e6)
    found = model[0].weight.abs().max()
    assert 0.99 * 1.5 * top * math.pi / 2 < found <= 1.5 * top * math.pi / 2 * (1 + 1e-6)


def test_baking_keeps_the_function_and_the_parameters_identity() -> None:
    model = mlp()
    names, objects = list(model.state_dict()), [id(p) for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    recipe = wp.Recipe(WeightCompander()).attach(model, wp.Classify(classes=3))
    for _ in range(3):
        recipe.step(batch(), optimizer)
    model.eval()
    before = model(batch()["x"])
    recipe.detach()
    assert torch.equal(model(batch()["x"]), before)
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == objects
    assert type(model[0]) is nn.Linear


def test_scales_are_trained_only_on_request() -> None:
    for learnable in (False, True):
        model = mlp()
        recipe = wp.Recipe(WeightCompander(learnable=learnable)).attach(model, wp.Classify(classes=3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scales = model[0].parametrizations["weight"][0].log_scales
        kept = scales.detach().clone()
        recipe.step(batch(), optimizer)
        assert torch.equal(scales.detach(), kept) != learnable


def test_zero_shared_and_frozen_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[0].weight)
    model[2].weight = model[1].weight
    model[3].weight.requires_grad_(False)
    recipe = wp.Recipe(WeightCompander()).attach(model, wp.Classify(classes=4))
    assert [parametrize.is_parametrized(m) for m in model] == [True, False, False, False]
    assert (model[0].weight == 0).all()
    assert model[1].weight is model[2].weight
    x = {"x": torch.randn(4, 4), "y": torch.arange(4)}
    recipe.step(x, torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.isfinite(model[0].weight).all()
    assert model[0].weight.abs().sum() > 0


def test_two_in_one_recipe_are_refused_and_undone() -> None:
    model = mlp()
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(wp.RecipeError, match="both reparametrise 'weight'"):
        wp.Recipe(WeightCompander(), WeightCompander()).attach(model, wp.Classify(classes=3))
    assert list(kept) == list(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, kept[name])


def test_a_spectral_norm_of_the_user_is_left_in_place() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)))
    with pytest.raises(wp.RecipeError, match="both reparametrise 'weight' of '1'"):
        wp.Recipe(WeightCompander()).attach(model, wp.Classify(classes=3))
    assert [parametrize.is_parametrized(m) for m in model] == [False, True]


def test_bound_that_the_initial_weights_break_is_refused() -> None:
    with pytest.raises(ValueError, match=r"WeightCompander: a must be above 0.637, got 0.5"):
        WeightCompander(a=0.5)


def test_near_zero_weights_get_fewer() -> None:
    """A uniform density of parameters has, in the weights, its least density at zero: slope a / b is largest there."""
    v = torch.linspace(-5, 5, 10001, dtype=torch.float64)
    w = compand(v, scalar(1.0), scalar(1.0))
    counts = torch.histc(w, bins=9, min=-1.35, max=1.35)
    assert counts.argmin() == 4


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "conv":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )
        x = torch.randn(12, 1, 8, 8)
    else:
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
        x = torch.randn(12, 5, 8)
    recipe = wp.Recipe(WeightCompander()).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    terms = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer) for _ in range(20)]
    assert terms[-1]["task"] < terms[0]["task"]
    recipe.detach()
    assert not any(isinstance(m, Compander) for m in model.modules())
