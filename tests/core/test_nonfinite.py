"""NaN and Inf are errors that name the step and the term; no weight moves."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from core_methods import (
    CLASSES,
    Activity,
    BadFrom,
    ClipNorm,
    Consistency,
    SquaredWeights,
    data,
    net,
    parts_of,
    sgd,
    weights,
)  # fmt: skip

import wellposed as wp


def refuse(term: str, *methods: wp.Method, batch=None, step: int = 0, model=None, **attach) -> wp.NonFiniteError:
    model = net() if model is None else model
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(CLASSES), **attach)
    optimizer = sgd(model)
    for _ in range(step):
        recipe.step(data(), optimizer)
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" not in k}
    with pytest.raises(wp.NonFiniteError, match=f"step {step}: the term '{term}' is") as caught:
        recipe.step(data() if batch is None else batch, optimizer)
    for k, v in before.items():
        assert torch.equal(model.state_dict()[k].nan_to_num(), v.nan_to_num()), k
    assert (caught.value.step, caught.value.term) == (step, term)
    assert not math.isfinite(caught.value.value)
    assert recipe.count == step
    return caught.value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_in_the_inputs(bad: float) -> None:
    batch = data()
    batch["x"][3, 2] = bad
    refuse("task", batch=batch)
    refuse("task", wp.SAM(), SquaredWeights(), batch=batch)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_in_soft_labels(bad: float) -> None:
    batch = data()
    batch["y"] = torch.nn.functional.one_hot(batch["y"], CLASSES).double()
    batch["y"][0, 0] = bad
    refuse("task", SquaredWeights(), batch=batch)


def test_in_a_later_microbatch() -> None:
    batch = data()
    batch["x"][-1] = math.nan
    refuse("task", Activity(), batch=parts_of(batch, 4, 4, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_in_one_penalty_among_several(bad: float) -> None:
    refuse("BadFrom", SquaredWeights(), BadFrom(value=bad), Activity(), wp.SAM())
    refuse("BadFrom.2", BadFrom(value=1.0), BadFrom(value=bad))


def test_in_the_third_step() -> None:
    refuse("BadFrom", SquaredWeights(), BadFrom(start=3), ClipNorm(), step=3)


def test_in_a_strength_on_the_way() -> None:
    """A schedule that is finite where attach looks, and nowhere else."""
    refuse(
        "SquaredWeights", SquaredWeights(strength=lambda p: 1.0 if p in {0.0, 0.5, 1.0} else math.nan), step=1, steps=9
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_in_one_parameter(bad: float) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[2, 3] = bad
    refuse("task", SquaredWeights(), model=model)


@pytest.mark.parametrize("outer", [[wp.SAM], [ClipNorm, wp.SAM]])
def test_in_the_second_pass(outer: list[type[wp.Method]]) -> None:
    """SAM has moved the weights when the error comes; they are back."""
    refuse("BadFrom", *(cls() for cls in outer), BadFrom(extra=True, start=2), Consistency(), step=2)


def test_in_somebody_elses_loop() -> None:
    model = net()
    recipe = wp.Recipe(BadFrom(start=1)).attach(model, wp.Classify(CLASSES))
    recipe.objective(model, data())
    recipe.update()
    with pytest.raises(wp.NonFiniteError, match="step 1: the term 'BadFrom' is nan"):
        recipe.objective(model, data())

    recipe = wp.Recipe(wp.SAM(), BadFrom(extra=True)).attach(twin := net(), wp.Classify(CLASSES))
    optimizer, before = recipe.optimizer(sgd(twin)), weights(twin)

    def closure() -> torch.Tensor:
        loss = recipe.objective(twin, data())
        loss.backward()
        return loss

    with pytest.raises(wp.NonFiniteError, match="BadFrom"):
        optimizer.step(closure)
    assert torch.equal(weights(twin), before)


def test_training_goes_on_after_the_error() -> None:
    """Whoever catches the error and takes the next batch is where they were."""
    model, twin = net(), net()
    methods = lambda: [wp.SAM(), SquaredWeights(), Activity(), Consistency()]  # noqa: E731
    recipe = wp.Recipe(*methods()).attach(model, wp.Classify(CLASSES))
    other = wp.Recipe(*methods()).attach(twin, wp.Classify(CLASSES))
    a, b = sgd(model), sgd(twin)
    for i in range(4):
        if i == 2:
            with pytest.raises(wp.NonFiniteError):
                recipe.step({**data(), "x": data()["x"] * math.nan}, a)
        recipe.step(data(), a)
        other.step(data(), b)
    assert torch.equal(weights(model), weights(twin))


def test_the_check_can_be_left_out() -> None:
    model = net()
    recipe = wp.Recipe(BadFrom()).attach(model, wp.Classify(CLASSES), check=False)
    assert math.isnan(recipe.step(data(), sgd(model))["BadFrom"])


def test_a_term_of_strength_zero_is_not_looked_at() -> None:
    model = net()
    recipe = wp.Recipe(BadFrom(strength=0.0)).attach(model, wp.Classify(CLASSES))
    assert set(recipe.step(data(), sgd(model))) == {"task", "total"}


def test_the_error_travels_between_processes() -> None:
    error = refuse("BadFrom", BadFrom())
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.step, twin.term) == (str(error), error.step, error.term)


# ---- batches that are none
@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        ([], ValueError, "a non-empty list of microbatches, got an empty list"),
        ((data()["x"], data()["y"]), TypeError, "a batch is a mapping of names to tensors.*got a Tensor"),
        (data()["x"], TypeError, "got a Tensor"),
        ([data(), None], TypeError, "got a NoneType"),
        (None, TypeError, "got a NoneType"),
        (3, TypeError, "got a int"),
        ("batch", TypeError, "got a str"),
        ({k: v[:0] for k, v in data().items()}, ValueError, "the batch holds no samples"),
        ([data(), {k: v[:0] for k, v in data().items()}], ValueError, "the batch holds no samples"),
        ([{"x": 3}, {"x": 4}], TypeError, "names to tensors with the samples along the first dimension"),
    ],
)
def test_what_is_no_batch(window, error: type[Exception], message: str) -> None:
    model = net()
    recipe = wp.Recipe(SquaredWeights()).attach(model, wp.Classify(CLASSES))
    before = weights(model)
    with pytest.raises(error, match=message):
        recipe.step(window, sgd(model))
    assert torch.equal(weights(model), before)
    recipe.step(data(), sgd(model))


def test_a_tuple_in_somebody_elses_loop() -> None:
    recipe = wp.Recipe().attach(model := net(), wp.Classify(CLASSES))
    with pytest.raises(TypeError, match="a batch is a mapping"):
        recipe.objective(model, (data()["x"], data()["y"]))


def test_any_iterable_of_microbatches_will_do() -> None:
    results = []
    for window in (parts_of(data(), 4, 8), tuple(parts_of(data(), 4, 8)), iter(parts_of(data(), 4, 8))):
        model = net()
        wp.Recipe().attach(model, wp.Classify(CLASSES)).step(window, sgd(model))
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
