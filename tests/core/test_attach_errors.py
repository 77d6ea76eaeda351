"""Every recipe that cannot work is refused at attach, in a sentence that says the mend, and leaves no trace."""

from __future__ import annotations

import math

import pytest
import torch
from core_methods import (
    CLASSES,
    Activity,
    AlsoHalfWeight,
    Average,
    HalfWeight,
    NeedsGroup,
    NeedsTokens,
    OtherLoss,
    SquaredWeights,
    YetAnotherLoss,
    data,
    net,
    sgd,
    train,
    weights,
)  # fmt: skip
from torch import nn

import wellposed as wp


def refuse(match: str, *methods: wp.Method, model: nn.Module | None = None, task=None, **attach) -> None:
    """Attaching fails with this message and the model is as before, bit for bit and hook for hook."""
    model = net() if model is None else model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [(n, type(m)) for n, m in model.named_modules()]
    recipe = wp.Recipe(*methods)
    with pytest.raises(wp.RecipeError, match=match):
        recipe.attach(model, task or wp.Classify(CLASSES), **attach)
    assert not recipe.attached
    assert [(n, type(m)) for n, m in model.named_modules()] == modules
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for m in model.modules():
        assert not (m._forward_hooks)
        assert not (m._forward_pre_hooks)
        assert not (m._backward_hooks)
        assert not (m._state_dict_hooks)
    recipe_that_works = wp.Recipe().attach(model, wp.Classify(CLASSES))
    recipe_that_works.step(data(), sgd(model))


def test_key_missing_from_the_task() -> None:
    refuse(r"NeedsGroup needs 'group'; task Classify gives \['index', 'logits', 'x', 'y'\]", NeedsGroup())


def test_key_missing_from_the_example() -> None:
    batch = {**data(), "grup": data()["y"]}
    refuse("NeedsGroup needs 'group'.*did you mean 'grup'", NeedsGroup(), example=batch)
    refuse("task Classify needs 'y'", example={"x": data()["x"]})
    del batch["index"]
    refuse("ELR needs 'index'", wp.ELR(rows=12, classes=3), example=batch)


def test_key_present_in_the_example_is_enough() -> None:
    batch = {**data(), "group": data()["y"]}
    train(NeedsGroup(), batch=batch, example=batch)


def test_unknown_submodule() -> None:
    refuse("Activity taps 'layer1', which the model does not have; it has", Activity(layers=("layer1",)))
    named = nn.Sequential()
    named.add_module("encoder", nn.Linear(6, 3))
    refuse("Activity taps 'encodr'.*it has encoder", Activity(layers=("encodr",)), model=named.double())


def test_two_loss_replacements() -> None:
    refuse("OtherLoss and YetAnotherLoss each replace the loss; keep one", OtherLoss(), YetAnotherLoss())


def test_duplicate_reparametrisation() -> None:
    refuse("HalfWeight and AlsoHalfWeight both reparametrise '0.weight'; keep one", HalfWeight(), AlsoHalfWeight())
    refuse("HalfWeight.1 and HalfWeight.2 both reparametrise", HalfWeight(), HalfWeight())


def test_reparametrising_different_layers_is_fine() -> None:
    model, recipe = train(HalfWeight(layer="0"), AlsoHalfWeight(layer="4"), SquaredWeights())
    recipe.detach()
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]


def test_wrong_kind_of_target() -> None:
    refuse("NeedsTokens works with token targets; task Classify has class targets", NeedsTokens())


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_non_finite_strength(bad: float) -> None:
    refuse("SquaredWeights: the strength must be a finite number", SquaredWeights(strength=lambda p: bad))
    refuse("SquaredWeights: the strength must be a finite number", SquaredWeights(strength=lambda p: bad if p else 1.0))
    if math.isnan(bad):
        with pytest.raises(ValueError, match="strength"):
            SquaredWeights(strength=bad)
    else:
        refuse("SquaredWeights: the strength must be a finite number", SquaredWeights(strength=bad))


def test_a_schedule_that_gives_no_number() -> None:
    refuse("SquaredWeights: the strength must be a finite number or a schedule", SquaredWeights(strength=str))


def test_a_setup_that_fails_half_way() -> None:
    """What earlier methods did is undone, and the failing method's own half."""

    class Fails(wp.Method):
        null = None

        def setup(self, model: nn.Module, task: wp.Task) -> None:
            model[0].register_buffer("left_behind", torch.ones(1))
            raise wp.RecipeError("no, not this model")

        def teardown(self, model: nn.Module) -> None:
            del model[0].left_behind

    refuse("no, not this model", HalfWeight(), Average(), Fails())


def test_other_exceptions_of_setup_pass_through_and_undo_too() -> None:
    class Breaks(wp.Method):
        null = None

        def setup(self, model: nn.Module, task: wp.Task) -> None:
            raise OSError("disk")

    model = net()
    with pytest.raises(OSError, match="disk"):
        wp.Recipe(HalfWeight(), Breaks()).attach(model, wp.Classify(CLASSES))
    assert torch.equal(weights(model), weights(net()))
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]


def test_what_is_no_task_or_no_model() -> None:
    refuse("the task must be a wellposed Task such as Classify\\(\\), got <class", task=wp.Classify)
    refuse("the task must be a wellposed Task", task="classify")
    with pytest.raises(wp.RecipeError, match=r"the model must be a torch\.nn\.Module, got None"):
        wp.Recipe().attach(None, wp.Classify(CLASSES))


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_below_one(steps: int) -> None:
    refuse(f"steps is the number of updates to come, at least 1; got {steps}", steps=steps)


def test_what_a_recipe_lists() -> None:
    with pytest.raises(wp.RecipeError, match=r"got <class .*SquaredWeights'>; write SquaredWeights\(\)"):
        wp.Recipe(SquaredWeights)
    with pytest.raises(wp.RecipeError, match="lists methods, got 3"):
        wp.Recipe(3)
    same = SquaredWeights()
    with pytest.raises(wp.RecipeError, match="listed twice"):
        wp.Recipe(same, same)
    for seed in ("0", 0.5, None):
        with pytest.raises(wp.RecipeError, match="the seed must be a whole number"):
            wp.Recipe(seed=seed)


def test_settings_of_the_wrong_kind() -> None:
    for settings, message in [
        ({"rho": "0.05"}, "SAM: rho must be a number, got '0.05'"),
        ({"rho": None}, "SAM: rho must be a number, got None"),
        ({"rho": True}, "SAM: rho must be a number, got True"),
        ({"adaptive": 1}, "SAM: adaptive must be True or False, got 1"),
        ({"rho": -1.0}, "SAM: rho must be at least 0, got -1"),
        ({"rho": math.nan}, "SAM: rho must be at least 0, got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            wp.SAM(**settings)
    with pytest.raises(ValueError, match=r"ELR: rows must be a whole number, got 10\.0"):
        wp.ELR(rows=10.0, classes=2)
    with pytest.raises(ValueError, match="ELR: strength must be a number or a schedule, got '3'"):
        wp.ELR(rows=10, classes=2, strength="3")


def test_methods_are_final_and_registered_once_named() -> None:
    with pytest.raises(TypeError, match="methods are final"):

        class Softer(SquaredWeights):
            pass


def test_nothing_works_before_attach() -> None:
    recipe, model = wp.Recipe(), net()
    for call in (
        lambda: recipe.step(data(), sgd(model)),
        lambda: recipe.objective(model, data()),
        lambda: recipe.update(),
        lambda: recipe.optimizer(sgd(model)),
        lambda: recipe.detach(),
        lambda: recipe.finish(),
        lambda: recipe.through(model),
        lambda: recipe.evaluating().__enter__(),
    ):
        with pytest.raises(wp.RecipeError, match="the recipe is not attached; call"):
            call()


def test_through_takes_the_attached_model_only() -> None:
    recipe = wp.Recipe().attach(net(), wp.Classify(CLASSES))
    with pytest.raises(wp.RecipeError, match="another model"):
        recipe.through(net())


def test_unknown_technique_suggests_the_nearest() -> None:
    with pytest.raises(AttributeError, match="wellposed has no 'SAMM'"):
        _ = wp.SAMM
