"""Gradient scaling with real overflows, autocast, and models of several dtypes."""

from __future__ import annotations

import copy

import pytest
import torch
from core_methods import (
    CLASSES,
    Activity,
    Average,
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
from torch import Tensor, nn

import wellposed as wp


class Explode(torch.autograd.Function):
    """The identity, whose gradient is infinite: what a half-precision overflow looks like."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * float("inf")


class Overflow(wp.Method):
    """Overflows in the backward pass of update ``at``; in SAM's second pass only, if ``late``."""

    null = None
    at: int = 1
    late: bool = False

    def outputs(self, out: dict, step: wp.Step) -> dict:
        if step.count == self.at and step.first != self.late:
            return {**out, "logits": Explode.apply(out["logits"])}
        return out


def scaled(*methods: wp.Method, init: float = 1024.0, **attach):
    scaler = torch.amp.GradScaler("cpu", init_scale=init, growth_interval=10**6)
    model = net(dtype=torch.float32)
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(CLASSES), scaler=scaler, **attach)
    return model, recipe, sgd(model), scaler


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "around", [[], [wp.SAM], [wp.SAM, ClipNorm], [ClipNorm, wp.SAM], [wp.DecoupledWeightDecay]], ids=str
)
@pytest.mark.parametrize("split", [1, 3])
def test_an_overflow_skips_the_update_and_lowers_the_scale(around: list, late: bool, split: int) -> None:
    if late and wp.SAM not in around:
        pytest.skip("one pass only")
    average = Average()
    model, recipe, optimizer, scaler = scaled(
        *(cls() for cls in around), Overflow(late=late), SquaredWeights(), average
    )
    batch = data(dtype=torch.float32)
    window = parts_of(batch, *[12 // split] * split)
    recipe.step(window, optimizer)
    before, averages = weights(model), copy.deepcopy(average.state_dict())
    momentum = copy.deepcopy(optimizer.state_dict()["state"])
    recipe.step(window, optimizer)
    assert torch.equal(weights(model), before)
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(v, averages[k]) for k, v in average.state_dict().items()), "a skipped update was averaged"
    for k, v in optimizer.state_dict()["state"].items():
        assert torch.equal(v["momentum_buffer"], momentum[k]["momentum_buffer"])
    recipe.step(window, optimizer)
    assert torch.isfinite(weights(model)).all()
    assert not torch.equal(weights(model), before)
    assert scaler.get_scale() == 512.0


def test_scaling_changes_no_bit_without_overflow() -> None:
    """Powers of two lose nothing, however methods wrap the gradient."""
    methods = lambda: [wp.SAM(rho=0.1), ClipNorm(), SquaredWeights(), Activity(), Average()]  # noqa: E731
    model, recipe, optimizer, _ = scaled(*methods(), init=2.0**16)
    plain = net(dtype=torch.float32)
    unscaled, other = wp.Recipe(*methods()).attach(plain, wp.Classify(CLASSES)), sgd(plain)
    for _ in range(4):
        recipe.step(data(dtype=torch.float32), optimizer)
        unscaled.step(data(dtype=torch.float32), other)
    assert torch.equal(weights(model), weights(plain))


def test_a_scaler_that_is_off_is_no_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    model, plain = net(), net()
    recipe = wp.Recipe(wp.SAM()).attach(model, wp.Classify(CLASSES), scaler=scaler)
    recipe.step(data(), sgd(model))
    wp.Recipe(wp.SAM()).attach(plain, wp.Classify(CLASSES)).step(data(), sgd(plain))
    assert torch.equal(weights(model), weights(plain))


def test_nan_in_a_term_is_no_overflow() -> None:
    """A broken term under a scaler is an error, not a skipped update; in SAM's second pass too."""
    for extra in (False, True):
        _, recipe, optimizer, scaler = scaled(wp.SAM(), BadFrom(extra=extra))
        with pytest.raises(wp.NonFiniteError, match="BadFrom"):
            recipe.step(data(dtype=torch.float32), optimizer)
        assert scaler.get_scale() == 1024.0


def test_autocast_computes_in_bfloat16_and_trains_close_to_float32() -> None:
    seen: list[torch.dtype] = []

    class See(wp.Method):
        null = None

        def outputs(self, out: dict, step: wp.Step) -> dict:
            seen.append(out["logits"].dtype)
            return out

    results = []
    for autocast in (None, torch.bfloat16):
        model = net(dtype=torch.float32)
        methods = [See(), wp.ELR(rows=12, classes=3), Activity(), Consistency(), SquaredWeights(), wp.SAM(), Average()]
        recipe = wp.Recipe(*methods).attach(model, wp.Classify(CLASSES), autocast=autocast)
        optimizer = sgd(model)
        for _ in range(5):
            terms = recipe.step(data(dtype=torch.float32), optimizer)
        results.append(weights(model))
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
        assert all(torch.isfinite(v) for v in terms.values())
    assert set(seen[:10]) == {torch.float32}
    assert set(seen[10:]) == {torch.bfloat16}
    gap = (results[0] - results[1]).norm() / results[0].norm()
    assert 0 < gap < 0.02


class Mixed(nn.Module):
    """Three dtypes in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16).double()
        self.middle = nn.Linear(16, 16).to(torch.bfloat16)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu().to(torch.bfloat16)
        return self.last(self.middle(hidden).relu().float())


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_parameters_of_several_dtypes(optimizer: str) -> None:
    torch.manual_seed(0)
    model = Mixed()
    methods = [
        wp.ELR(rows=12, classes=CLASSES, strength=0.1), Activity(layers=("last",), strength=1e-3),
        SquaredWeights(strength=1e-3), wp.SAM(rho=0.05), ClipNorm(norm=1.0), Average(),
    ]  # fmt: skip
    batch = {**data(), "y": data()["x"][:, :CLASSES].argmax(1)}
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(CLASSES))
    update = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
    dtypes = [p.dtype for p in model.parameters()]
    first = float(recipe.step(batch, update)["task"])
    for _ in range(30):
        terms = recipe.step(batch, update)
    assert float(terms["task"]) < first
    assert [p.dtype for p in model.parameters()] == dtypes
    recipe.finish()
    assert [p.dtype for p in model.parameters()] == dtypes


def test_frozen_layers_stay_as_they_are() -> None:
    model = net(norm=True)
    model[0].requires_grad_(False)
    kept = copy.deepcopy(model[0].state_dict())
    methods = [SquaredWeights(), Activity(), Consistency(), wp.SAM(rho=0.1), wp.SAM(rho=0.1, adaptive=True), ClipNorm()]
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(CLASSES))
    optimizer = sgd(model)
    for _ in range(3):
        recipe.step(data(), optimizer)
    assert all(torch.equal(v, kept[k]) for k, v in model[0].state_dict().items())
    assert all(p.grad is None for p in model[0].parameters())
    assert not torch.equal(model[4].weight, net(norm=True)[4].weight)


def test_layers_that_thaw_later_take_part() -> None:
    model = net()
    model[0].requires_grad_(False)
    recipe = wp.Recipe(SquaredWeights(), wp.SAM()).attach(model, wp.Classify(CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe.step(data(), optimizer)
    model[0].requires_grad_(True)
    before = model[0].weight.detach().clone()
    recipe.step(data(), optimizer)
    assert not torch.equal(model[0].weight, before)


def test_tied_weights_count_once() -> None:
    torch.manual_seed(0)
    body = nn.Linear(6, 6).double()
    model = nn.Sequential(body, nn.Tanh(), body, nn.Linear(6, CLASSES).double())
    recipe = wp.Recipe(SquaredWeights(strength=1.0)).attach(model, wp.Classify(CLASSES))
    terms = recipe.step(data(), sgd(model, lr=0.0))
    expected = body.weight.square().sum() + model[3].weight.square().sum()
    assert terms["SquaredWeights"].item() == pytest.approx(expected.item(), rel=1e-12)


class Widths(wp.Method):
    """The dtypes of the main pass and of two extra ones."""

    null = None

    def penalty(self, step: wp.Step) -> Tensor | None:
        extra = (step.forward()["logits"], step.forward(precise=True)["logits"])
        self.seen = [z.dtype for z in (step.out["logits"], *extra)]
        return None


def test_an_extra_pass_can_be_precise_under_autocast() -> None:
    model = net(dtype=torch.float32)
    recipe = wp.Recipe(widths := Widths()).attach(model, wp.Classify(CLASSES), autocast=torch.bfloat16)
    recipe.step(data(dtype=torch.float32), sgd(model))
    assert widths.seen == [torch.bfloat16, torch.bfloat16, torch.float32]
