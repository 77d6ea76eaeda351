"""Recipes as text: repr, TOML, JSON; and files that are none."""

from __future__ import annotations

import copy
import json
import pickle
import tomllib

import pytest
import torch
from core_methods import CLASSES, Activity, Average, Consistency, SquaredWeights, data, net, sgd, train, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wellposed as wp
from wellposed.core.registry import catalogue

RECIPES = [
    lambda: wp.Recipe(),
    lambda: wp.Recipe(wp.SAM(rho=0.2, adaptive=True), seed=7),
    lambda: wp.Recipe(wp.ELR(rows=12, classes=3, strength=wp.WarmUp(3.0, portion=0.2)), wp.SAM(), seed=2**40),
    lambda: wp.Recipe(SquaredWeights(strength=wp.Steps((1.0, 1e-5), (0.5,))), Activity(layers=("0", "4"))),
    lambda: wp.Recipe(SquaredWeights(strength=wp.SineStages((0.1, 0.5), (0.2, 0.9))), SquaredWeights(strength=1e-12)),
    lambda: wp.Recipe(SquaredWeights(strength=wp.Exponential(0.1, 10.0, stages=5)), Consistency(std=3)),
]


@pytest.mark.parametrize("build", RECIPES)
def test_round_trips(build) -> None:
    recipe = build()
    names = {**vars(wp), **catalogue()}
    for again in (
        wp.load_recipe(recipe.to_toml()),
        wp.load_recipe(recipe.to_json()),
        wp.load_recipe("\n  " + recipe.to_json()),
        eval(repr(recipe), names),
        pickle.loads(pickle.dumps(recipe)),
        copy.deepcopy(recipe),
    ):
        assert repr(again) == repr(recipe)
        assert again.to_dict() == recipe.to_dict()
        assert again.seed == recipe.seed
    assert tomllib.loads(recipe.to_toml())["version"] == json.loads(recipe.to_json())["version"] == 1


def test_a_recipe_read_back_trains_the_same() -> None:
    def run(recipe: wp.Recipe) -> torch.Tensor:
        model = net()
        recipe.attach(model, wp.Classify(CLASSES), steps=4)
        optimizer = sgd(model)
        for _ in range(4):
            recipe.step(data(), optimizer)
        return weights(model)

    build = RECIPES[2]
    assert torch.equal(run(build()), run(wp.load_recipe(build().to_toml())))


def test_copies_of_an_attached_recipe_stand_alone() -> None:
    """A deep copy carries a copy of the model: it trains on by itself, and the original does not move."""
    model, recipe = train(Activity(), Average(), Consistency())
    twin = copy.deepcopy(recipe)
    before = weights(model)
    assert twin.bare is not model
    twin.step(data(), sgd(twin.bare))
    assert torch.equal(weights(model), before)
    recipe.step(data(), sgd(model))
    assert torch.equal(weights(model), weights(twin.bare))


def test_methods_appear_by_catalogue_id_and_any_case() -> None:
    read = wp.load_recipe('version = 1\n[[method]]\nname = "sam"\nrho = 0.2\n[[method]]\nname = "SAM"')
    assert repr(read) == "Recipe(SAM(rho=0.2), SAM())"


def test_a_plain_function_cannot_be_saved() -> None:
    recipe = wp.Recipe(SquaredWeights(strength=lambda p: p))
    for save in (recipe.to_dict, recipe.to_json, recipe.to_toml):
        with pytest.raises(
            wp.RecipeError, match=r"SquaredWeights.strength is <function .* which no file can hold; use"
        ):
            save()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has version None; this release reads version 1"),
        ("version = 2", "has version 2; this release reads version 1"),
        ('version = "1"', "has version '1'"),
        ("version = 1\nmethods = 3", "unknown entries in the recipe file: methods"),
        ("version = 1\nmethod = 3", r"a list of \[\[method\]\]"),
        ("version = 1\nseed = 0.5", "the seed must be a whole number, got 0.5"),
        ("version = 1\n[[method]]\nrho = 1", "needs a name"),
        ('version = 1\n[[method]]\nname = "samm"', "unknown method 'samm'; did you mean sam"),
        ('version = 1\n[[method]]\nname = "sam"\nrh = 1', "SAM has no 'rh'; it has adaptive, eta, rho"),
        ('version = 1\n[[method]]\nname = "sam"\nrho = -1', "rho must be at least 0, got -1"),
        ('version = 1\n[[method]]\nname = "sam"\nrho = "big"', "rho must be a number, got 'big'"),
        (
            'version = 1\n[[method]]\nname = "sam"\nrho = {schedule = "Linear", start = 1, stop = 2}',
            "rho must be a num",
        ),
        ('version = 1\n[[method]]\nname = "elr"\nclasses = 3', "rows"),
        (
            'version = 1\n[[method]]\nname = "elr"\nrows = 3\nclasses = 3\nstrength = {schedule = "Linea", start = 1}',
            "is no schedule; known are Constant, Linear",
        ),
        (
            'version = 1\n[[method]]\nname = "elr"\nrows = 3\nclasses = 3\nstrength = {schedule = "Linear", start = 1}',
            "is no schedule",
        ),
        ("{", "neither TOML nor JSON"),
        ("[1, 2]", "neither TOML nor JSON"),
        ("PK\x03\x04", "neither TOML nor JSON"),
        ('{"version": 1, "method": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(wp.RecipeError, match=message):
        wp.load_recipe(text)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
words = st.sampled_from(["version", "seed", "method", "name", "schedule", "rho", "start", "values", "strength", ""])
trees = st.recursive(
    leaves,
    lambda t: st.lists(t, max_size=3) | st.dictionaries(words | st.text(max_size=3), t, max_size=4),
    max_leaves=9,
)
settings_of = st.dictionaries(
    st.sampled_from(["rho", "eta", "adaptive", "rows", "classes", "beta", "strength", "alpha", "layers", "mode"]),
    trees
    | st.fixed_dictionaries(
        {"schedule": st.sampled_from(["Linear", "Steps", "Exponential", "SineStages", "WarmUp"])},
        optional=dict.fromkeys(("start", "stop", "value", "values", "milestones", "stages", "portion"), trees),
    ),
    max_size=3,
)
ours = sorted(name for name, cls in catalogue().items() if cls.__module__.startswith("wellposed."))  # not other tests'
rows = st.builds(lambda name, rest: {**rest, "name": name}, st.sampled_from(ours) | st.text(max_size=4), settings_of)
files = st.fixed_dictionaries(
    {"version": st.just(1) | leaves, "method": st.lists(rows, max_size=2) | trees},
    optional={"seed": leaves, "x": trees},
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def only_recipe_errors(text: str) -> None:
    """Whatever the text, reading gives a recipe whose own text reads back, or a RecipeError."""
    try:
        recipe = wp.load_recipe(text)
    except wp.RecipeError:
        return
    assert repr(wp.load_recipe(recipe.to_json())) == repr(recipe)


@quick
@given(data=files | trees)
def test_hostile_json(data) -> None:
    only_recipe_errors(json.dumps(data))


@quick
@given(data=files, cut=st.integers(0, 400))
def test_cut_json(data, cut: int) -> None:
    only_recipe_errors(json.dumps(data)[:cut])


def toml_of(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml_of(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml_of(v) for v in value if v is not None) + "]"
    return str(value).lower() if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


@quick
@given(data=files, junk=st.text(max_size=10), at=st.integers(0, 300))
def test_hostile_toml(data, junk: str, at: int) -> None:
    text = "\n".join(f"{json.dumps(k)} = {toml_of(v)}" for k, v in data.items() if v is not None)
    only_recipe_errors(text)
    only_recipe_errors(text[:at] + junk + text[at:])


@quick
@given(text=st.text())
def test_any_text(text: str) -> None:
    only_recipe_errors(text)
