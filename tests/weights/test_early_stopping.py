"""EarlyStopping: what it keeps, when it gives up, and that it survives a restart."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.weights.early_stopping import EarlyStopping


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def images() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, 1, 8, 8, generator=g), "y": torch.arange(12) % 3}


def trained(scores: list[float], **settings: object) -> tuple[EarlyStopping, wp.Recipe, list[dict[str, Tensor]]]:
    """One update before each score; the model's state at each."""
    model, stop, states = conv_net(), EarlyStopping(**settings), []
    recipe = wp.Recipe(stop).attach(model, wp.Classify())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for score in scores:
        recipe.step(images(), optimizer)
        states.append(copy.deepcopy(model.state_dict()))
        stop.observe(score)
    return stop, recipe, states


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [("max", [0.5, 0.9, 0.7, 0.9, 0.1], 1), ("min", [0.5, 0.9, 0.2, 0.3], 2), ("max", [math.nan, -5.0, math.nan], 1)],
)
def test_ships_the_first_best_with_its_statistics(mode: str, scores: list[float], best: int) -> None:
    _, recipe, states = trained(scores, mode=mode)
    model = recipe.bare
    with recipe.evaluating():
        assert all(torch.equal(v, states[best][k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, states[-1][k]) for k, v in model.state_dict().items())
    recipe.finish()
    assert all(torch.equal(v, states[best][k]) for k, v in model.state_dict().items())  # batch statistics included


def test_gives_up_after_patience_observations() -> None:
    model, stop = nn.Linear(2, 2), EarlyStopping(patience=3, mode="min")
    wp.Recipe(stop).attach(model, wp.Classify())
    said = []
    for score in (3.0, 2.0, 2.0, torch.tensor(2.5), 1.0, 5.0, 5.0):
        stop.observe(score)
        said.append(stop.exhausted)
    assert not any(said)
    assert stop.observe(0.5)
    assert [(stop.observe(s), stop.exhausted)[1] for s in (0.5, 0.6, math.nan)] == [False, False, True]


def test_without_scores_the_last_weights_are_shipped() -> None:
    model = conv_net()
    recipe = wp.Recipe(EarlyStopping()).attach(model, wp.Classify())
    recipe.step(images(), torch.optim.SGD(model.parameters(), lr=0.1))
    last = copy.deepcopy(model.state_dict())
    recipe.finish()
    assert all(torch.equal(v, last[k]) for k, v in model.state_dict().items())


def test_survives_a_restart() -> None:
    stop, recipe, states = trained([0.5, 0.9, 0.7], patience=3)
    again, model = EarlyStopping(patience=3), conv_net()
    other = wp.Recipe(again).attach(model, wp.Classify())
    other.load_state_dict(recipe.state_dict())
    for s in (stop, again):
        assert not s.exhausted
        s.observe(0.8)
        s.observe(0.8)
        assert s.exhausted
    other.finish()
    assert all(torch.equal(v, states[1][k]) for k, v in model.state_dict().items())


def test_a_method_listed_later_may_reparametrise() -> None:
    model, stop = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), EarlyStopping()
    recipe = wp.Recipe(stop, wp.WeightCompander()).attach(model, wp.Classify())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(6, 6), "y": torch.arange(6) % 3}
    recipe.step(batch, optimizer)
    stop.observe(1.0)
    best = model(batch["x"]).detach()
    recipe.step(batch, optimizer)
    assert torch.allclose(recipe.finish()(batch["x"]), best, rtol=1e-5, atol=1e-6)


def test_bad_input() -> None:
    with pytest.raises(RuntimeError, match="attach the recipe first"):
        EarlyStopping().observe(0.5)
    with pytest.raises(ValueError, match="mode must be 'max' or 'min', got 'lower'"):
        EarlyStopping(mode="lower")
    with pytest.raises(ValueError, match="patience must be at least 1"):
        EarlyStopping(patience=0)
