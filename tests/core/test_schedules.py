"""Strengths that change over training."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from core_methods import CLASSES, SquaredWeights, data, net, sgd
from hypothesis import given
from hypothesis import strategies as st

import wellposed as wp

EVERY = [
    wp.Constant(0.5), wp.Linear(0.0, 2.0), wp.Cosine(2.0, 0.5), wp.WarmUp(3.0, portion=0.25),
    wp.Steps(values=(1.0, 0.5, 0.1), milestones=(0.3, 0.6)),
    wp.SineStages(values=(0.1, 0.5, 1.0), milestones=(0.2, 0.5, 0.9)), wp.Exponential(0.1, 10.0),
    wp.Exponential(0.1, 10.0, stages=5),
]  # fmt: skip
progress = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("schedule", "at", "value"),
    [
        (wp.Constant(0.5), 0.3, 0.5),
        (wp.Linear(1.0, 3.0), 0.25, 1.5),
        (wp.Cosine(2.0, 0.0), 0.5, 1.0),
        (wp.Cosine(2.0, 0.0), 0.25, 1 + math.sqrt(0.5)),
        (wp.WarmUp(3.0, 0.2), 0.1, 1.5),
        (wp.WarmUp(3.0, 0.2), 0.9, 3.0),
        (wp.WarmUp(3.0, 0.0), 0.0, 3.0),
        (wp.Steps((1.0, 0.1), (0.5,)), 0.4999, 1.0),
        (wp.Steps((1.0, 0.1), (0.5,)), 0.5, 0.1),
        (wp.SineStages((0.0, 1.0), (0.2, 0.6)), 0.1, 0.0),
        (wp.SineStages((0.0, 1.0), (0.2, 0.6)), 0.4, 0.5),
        (wp.SineStages((0.0, 1.0), (0.2, 0.6)), 0.8, 1.0),
        (wp.Exponential(1.0, 100.0), 0.5, 10.0),
        (wp.Exponential(1.0, 100.0, stages=3), 0.34, 10.0),
        (wp.Exponential(1.0, 100.0, stages=3), 1.0, 100.0),
    ],
    ids=repr,
)
def test_values(schedule, at: float, value: float) -> None:
    assert schedule(at) == pytest.approx(value, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
@given(at=progress)
def test_stays_within_its_ends(schedule, at: float) -> None:
    ends = [v for value in vars(schedule).values() for v in (value if isinstance(value, tuple) else (value,))]
    assert min(0.0, *ends) - 1e-12 <= schedule(at) <= max(ends) + 1e-12


@given(left=progress, right=progress)
def test_sine_stages_have_no_jumps_and_no_kinks(left: float, right: float) -> None:
    """Between two near points the value moves by at most the steepest slope, pi / 2 times the mean slope."""
    schedule = EVERY[5]
    assert abs(schedule(left) - schedule(right)) <= math.pi / 2 * 0.5 / 0.3 * abs(left - right) + 1e-12
    for at in schedule.milestones:
        assert abs(schedule(at + 1e-6) - schedule(at)) + abs(schedule(at) - schedule(at - 1e-6)) < 1e-10


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_is_a_value(schedule) -> None:
    assert eval(repr(schedule), vars(wp)) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    assert hash(schedule) == hash(copy.deepcopy(schedule))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: wp.Steps((1.0, 0.5), ()), "expected 1 milestones, got 0"),
        (lambda: wp.Steps((1.0, 0.5, 0.1), (0.6, 0.3)), "milestones must rise"),
        (lambda: wp.SineStages((), ()), "expected 1 milestones, got 0"),
        (lambda: wp.SineStages((1.0,), (1.5,)), "milestones must rise within"),
        (lambda: wp.Exponential(0.0, 1.0), "positive ends"),
        (lambda: wp.Linear("0", 1.0), "Linear is made of finite numbers, got '0'"),
        (lambda: wp.Constant(math.nan), "Constant is made of finite numbers, got nan"),
        (lambda: wp.Steps((1.0, None), (0.5,)), "Steps is made of finite numbers, got None"),
    ],
)
def test_impossible_schedules(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def strengths(schedule, updates: int, **attach) -> list[float]:
    """The strength that acted in each update, from the logged term over the term of strength 1."""
    model = net()
    recipe = wp.Recipe(SquaredWeights(strength=schedule)).attach(model, wp.Classify(CLASSES), **attach)
    still = sgd(model, lr=0.0)
    squares = float(sum(p.square().sum() for p in model.parameters() if p.ndim > 1).detach())
    terms = [recipe.step(data(), still) for _ in range(updates)]
    return [float(t.get("SquaredWeights", torch.zeros(()))) / squares for t in terms]


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_acts_at_count_over_steps(schedule) -> None:
    assert strengths(schedule, 5, steps=5) == pytest.approx([schedule(i / 5) for i in range(5)])


def test_any_callable_will_do() -> None:
    assert strengths(lambda p: 1 - p * p, 4, steps=4) == pytest.approx([1 - (i / 4) ** 2 for i in range(4)])


def test_after_the_end_the_last_value_stays() -> None:
    assert strengths(wp.Linear(0.0, 1.0), 6, steps=3) == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])


def test_progress_can_be_said_at_each_step() -> None:
    model = net()
    recipe = wp.Recipe(SquaredWeights(strength=wp.Linear(0.0, 1.0))).attach(model, wp.Classify(CLASSES), steps=10)
    still = sgd(model, lr=0.0)
    first, second = (float(recipe.step(data(), still, progress=p)["SquaredWeights"]) for p in (0.5, 1.0))
    assert second == pytest.approx(2 * first)


def test_a_schedule_without_steps_says_what_to_do() -> None:
    model = net()
    recipe = wp.Recipe(SquaredWeights(strength=wp.WarmUp(1.0))).attach(model, wp.Classify(CLASSES))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="pass steps=<number of updates> to attach, or progress= to step"):
        recipe.step(data(), sgd(model))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    recipe.step(data(), sgd(model), progress=0.5)


def test_a_number_needs_no_steps() -> None:
    assert strengths(0.25, 2) == pytest.approx([0.25, 0.25])
