"""Dropout and running statistics in extra passes, and training that goes on bit for bit from a file."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_methods import (
    CLASSES,
    Activity,
    Average,
    ClipNorm,
    Consistency,
    HalfWeight,
    SquaredWeights,
    Watch,
    data,
    net,
    parts_of,
    sgd,
    weights,
)  # fmt: skip
from torch import Tensor, nn

import wellposed as wp


class Functional(nn.Module):
    """Dropout that shows in no submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(self.first(x).relu(), 0.5, self.training))


def functional() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Functional().double()


class WithAnother(wp.Classify):
    """A task with a model of its own, whose dropout falls on the inputs."""

    def __init__(self) -> None:
        super().__init__(CLASSES)
        self.other = nn.Dropout(0.5)

    def forward(self, model: nn.Module, batch: wp.core.task.Batch) -> wp.core.task.Outputs:
        return super().forward(model, {**batch, "x": self.other(batch["x"])})


class AgainUnchanged(wp.Method):
    """An extra pass on the same inputs, which must give the outputs of the main pass."""

    null = None

    def setup(self, model: nn.Module, task: wp.Task) -> None:
        self.gaps: list[float] = []

    def penalty(self, step: wp.Step) -> Tensor:
        again = step.forward()["logits"]
        self.gaps.append(float((again - step.out["logits"]).detach().abs().max()))
        return again.sum(-1) * 0

    def passes(self) -> float:
        return 4 / 3


class Noisy(Functional):
    """The same, and it says so."""

    stochastic = True


def test_a_module_that_says_it_is_stochastic_is_replayed() -> None:
    """Its noise depends on seed and step, not on what else has drawn from the global generator."""
    trained = []
    for elsewhere in (0, 1):
        torch.manual_seed(elsewhere)
        model = Noisy().double()
        model.load_state_dict(functional().state_dict())
        recipe = wp.Recipe(seed=5).attach(model, wp.Classify(CLASSES))
        for _ in range(2):
            recipe.step(data(), sgd(model))
            torch.randn(3)
        trained.append(weights(model))
    assert torch.equal(*trained)


def test_the_noise_of_a_model_that_the_task_holds_is_replayed() -> None:
    trained = []
    for elsewhere in (0, 1):
        torch.manual_seed(elsewhere)
        model = net()
        recipe = wp.Recipe(again := AgainUnchanged()).attach(model, WithAnother())
        recipe.step(data(), sgd(model))
        assert again.gaps == [0.0]
        trained.append(weights(model))
    assert torch.equal(*trained)


@pytest.mark.parametrize("build", [lambda: net(dropout=0.5), functional], ids=["module", "function"])
def test_extra_passes_repeat_the_masks_of_the_main_pass(build) -> None:
    watch, again = Watch(), AgainUnchanged()
    model = build()
    recipe = wp.Recipe(watch, again, wp.SAM(rho=1e-12)).attach(model, wp.Classify(CLASSES))
    still = sgd(model, lr=0.0)
    window = parts_of(data(), 6, 6)
    window[1] = window[0]  # the same samples: their masks differ all the same
    for _ in range(2):
        recipe.step(window, still)
    assert max(again.gaps) == 0.0
    by_pass = {(count, micro, first): z for count, micro, first, z in watch.seen}
    for count in (0, 1):
        for micro in (0, 1):
            pair = by_pass[count, micro, True], by_pass[count, micro, False]
            assert torch.allclose(*pair, atol=1e-9), "SAM's second pass drew other masks"
    mains = [by_pass[c, m, True] for c in (0, 1) for m in (0, 1)]
    for i, a in enumerate(mains):
        for b in mains[i + 1 :]:
            assert not torch.allclose(a, b, atol=1e-3), "two steps or microbatches drew the same masks"


@pytest.mark.parametrize("methods", [[], [wp.SAM], [Consistency, wp.SAM]], ids=str)
def test_the_users_generators_are_left_alone(methods: list[type[wp.Method]]) -> None:
    model = net(dropout=0.5)
    recipe = wp.Recipe(*(cls() for cls in methods)).attach(model, wp.Classify(CLASSES))
    optimizer = sgd(model)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    recipe.step(data(), optimizer)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == str(np.random.get_state())  # noqa: NPY002
    assert states[2] == random.getstate()


def test_generators_are_put_back_after_an_error() -> None:
    model = net(dropout=0.5)
    recipe = wp.Recipe().attach(model, wp.Classify(CLASSES))
    state = torch.get_rng_state()
    with pytest.raises(wp.NonFiniteError):
        recipe.step({**data(), "x": data()["x"] * float("nan")}, sgd(model))
    assert torch.equal(state, torch.get_rng_state())


def test_training_does_not_depend_on_the_global_generator_and_depends_on_the_seed() -> None:
    def run(seed: int, outside: int) -> Tensor:
        model = net(dropout=0.5)
        recipe = wp.Recipe(Consistency(), seed=seed).attach(model, wp.Classify(CLASSES))
        torch.manual_seed(outside)
        optimizer = sgd(model)
        for _ in range(3):
            recipe.step(data(), optimizer)
        return weights(model)

    assert torch.equal(run(0, 1), run(0, 2))
    assert not torch.equal(run(0, 1), run(1, 1))


NORMS = {
    "batch": lambda: nn.BatchNorm1d(4, affine=True),
    "cumulative": lambda: nn.BatchNorm1d(4, momentum=None),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("kind", NORMS)
def test_running_statistics_move_once_per_update(kind: str) -> None:
    """After a step with five passes they are what one plain forward makes of them."""

    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Conv1d(1, 4, 3), NORMS[kind](), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)
            ).double()

    batch = {**data(), "x": data()["x"].unsqueeze(1)}
    plain, model = build(), build()
    plain(batch["x"])
    recipe = wp.Recipe(Consistency(), wp.SAM(), AgainUnchanged()).attach(model, wp.Classify(CLASSES))
    recipe.step(batch, sgd(model))
    assert torch.equal(model[1].running_mean, plain[1].running_mean)
    assert torch.equal(model[1].running_var, plain[1].running_var)
    assert model[1].track_running_stats
    assert model[1].momentum == plain[1].momentum


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm_iterates_once_per_update(wrap: Callable[[nn.Module], nn.Module]) -> None:
    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = net()
            wrap(model[0])
            return model

    plain, model = build(), build()
    plain(data()["x"])
    recipe = wp.Recipe(wp.SAM(), AgainUnchanged()).attach(model, wp.Classify(CLASSES))
    recipe.step(data(), sgd(model, lr=0.0))
    vectors = [dict(m.named_buffers()) for m in (plain[0], model[0])]
    assert vectors[0]
    assert all(torch.equal(vectors[1][name], vector) for name, vector in vectors[0].items())
    plain(data()["x"])
    model(data()["x"])
    assert all(torch.equal(vectors[1][name], vector) for name, vector in vectors[0].items())  # they go on together


class Counter(nn.Module):
    """Counts its training passes, unless it is told not to keep statistics."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.tensor(0))
        self.track_running_stats = True

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.track_running_stats:
            self.passes += 1
        return x


def test_a_module_that_tracks_running_statistics_is_frozen_in_extra_passes() -> None:
    model = nn.Sequential(counter := Counter(), net())
    recipe = wp.Recipe(Consistency(), wp.SAM(), AgainUnchanged()).attach(model, wp.Classify(CLASSES))
    for _ in range(3):
        recipe.step(data(), sgd(model))
    assert counter.passes == 3
    assert counter.track_running_stats


# ---- resume
def six() -> list[wp.Method]:
    return [
        HalfWeight(), wp.ELR(rows=12, classes=CLASSES, strength=wp.WarmUp(3.0, portion=0.5)), SquaredWeights(),
        Activity(), Consistency(), wp.SAM(rho=0.1), ClipNorm(norm=0.5), Average(),
    ]  # fmt: skip


def fresh(kind: str):
    model = net(dropout=0.3, norm=True)
    recipe = wp.Recipe(*six(), seed=11).attach(model, wp.Classify(CLASSES), steps=10)
    optimizer = sgd(model) if kind == "sgd" else torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, recipe, optimizer


def through_torch(model, optimizer, recipe):
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), recipe.state_dict()], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_plain_tensors(model, optimizer, recipe):
    """What a tensor file can hold: one flat mapping of names to tensors, here as bytes of numpy arrays."""
    flat = {f"model/{k}": v for k, v in model.state_dict().items()}
    flat |= {f"recipe/{k}": v for k, v in recipe.state_dict().items()}
    assert all(isinstance(v, Tensor) and v.layout == torch.strided for v in flat.values())
    stored = {k: (v.numpy().tobytes(), v.dtype, v.shape) for k, v in flat.items()}
    read = {
        k: torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) for k, (raw, dtype, shape) in stored.items()
    }
    parts = [{k.partition("/")[2]: v for k, v in read.items() if k.startswith(p)} for p in ("model", "recipe")]
    return parts[0], through_torch(model, optimizer, recipe)[1], parts[1]


@pytest.mark.parametrize("through", [through_torch, through_plain_tensors])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("split", [1, 3])
def test_eight_methods_resume_bit_for_bit(through, kind: str, split: int) -> None:
    window = parts_of(data(), *[12 // split] * split)
    model, recipe, optimizer = fresh(kind)
    for i in range(7):
        if i == 4:
            saved = through(model, optimizer, recipe)
            torch.manual_seed(999)
            other, again, update = fresh(kind)
            other.load_state_dict(saved[0])
            update.load_state_dict(saved[1])
            again.load_state_dict(saved[2])
            assert again.count == 4
        recipe.step(window, optimizer)
    for _ in range(3):
        again.step(window, update)
    for a, b in ((model, other), (recipe, again)):
        for (k, u), (_, v) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
            assert torch.equal(u, v), k
    assert torch.equal(weights(recipe.finish()), weights(again.finish()))
