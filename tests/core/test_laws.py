"""The three laws: values chain in list order, terms commute, wrappers nest with the first listed outermost."""

from __future__ import annotations

import itertools

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
    PlusLogits,
    PlusLoss,
    PlusX,
    SquaredWeights,
    TimesLogits,
    TimesLoss,
    TimesX,
    data,
    net,
    parts_of,
    sgd,
    train,
    weights,
)  # fmt: skip
from torch.nn.utils.parametrize import is_parametrized

import wellposed as wp


def logged(*methods: wp.Method) -> dict[str, float]:
    model = net()
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(CLASSES))
    return {k: float(v) for k, v in recipe.step(data(), sgd(model)).items()}


def by_hand(x_of=lambda x: x, logits_of=lambda z: z, loss_of=lambda v: v) -> float:
    batch = data()
    with torch.no_grad():
        rows = F.cross_entropy(logits_of(net()(x_of(batch["x"]))), batch["y"], reduction="none")
    return float(loss_of(rows).mean())


RAMP = torch.arange(CLASSES, dtype=torch.float64)


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ([TimesX(), PlusX()], {"x_of": lambda x: 2 * x + 1}),
        ([PlusX(), TimesX()], {"x_of": lambda x: 2 * (x + 1)}),
        ([TimesLogits(), PlusLogits()], {"logits_of": lambda z: 2 * z + RAMP}),
        ([PlusLogits(), TimesLogits()], {"logits_of": lambda z: 2 * (z + RAMP)}),
        ([TimesLoss(), PlusLoss()], {"loss_of": lambda v: 2 * v + 1}),
        ([PlusLoss(), TimesLoss()], {"loss_of": lambda v: 2 * (v + 1)}),
        ([TimesLoss(), PlusX(), PlusLoss(), TimesX()], {"x_of": lambda x: 2 * (x + 1), "loss_of": lambda v: 2 * v + 1}),
    ],
    ids=lambda v: repr(v) if isinstance(v, list) else "+".join(v),
)
def test_values_chain_in_list_order(methods, expected) -> None:
    assert logged(*methods)["total"] == pytest.approx(by_hand(**expected), rel=1e-12)


def test_terms_add_and_commute() -> None:
    """Whatever the order of three penalties, the terms, their sum and the weights agree."""
    results = []
    for order in itertools.permutations([SquaredWeights, Activity, Consistency]):
        terms = logged(*(cls() for cls in order))
        assert terms["total"] == pytest.approx(sum(v for k, v in terms.items() if k != "total"), rel=1e-12)
        assert set(terms) == {"task", "total", "SquaredWeights", "Activity", "Consistency"}
        results.append((terms, weights(train(*(cls() for cls in order))[0])))
    for terms, trained in results[1:]:
        assert terms == pytest.approx(results[0][0], rel=1e-12)
        assert torch.allclose(trained, results[0][1], rtol=0, atol=1e-13)


def test_terms_equal_a_handwritten_sum() -> None:
    model, batch = net(), data()
    hidden = model[0](batch["x"])
    activity = 0.3 * hidden.abs().mean(1).mean()
    squares = 0.2 * sum(p.square().sum() for p in model.parameters() if p.ndim > 1)
    (F.cross_entropy(model(batch["x"]), batch["y"]) + activity + squares).backward()

    twin = net()
    recipe = wp.Recipe(Activity(strength=0.3), SquaredWeights(strength=0.2)).attach(twin, wp.Classify(CLASSES))
    terms = recipe.step(batch, sgd(twin, lr=0.0))
    assert float(terms["Activity"]) == pytest.approx(activity.item(), rel=1e-12)
    assert float(terms["SquaredWeights"]) == pytest.approx(squares.item(), rel=1e-12)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=0, atol=1e-14)


def sam_by_hand(model, batch, rho: float, clip_inner: float | None, clip_outer: float | None) -> None:
    """One update of plain SGD without momentum, lr 0.05, clipping inside each pass or around both."""

    def grads() -> list[torch.Tensor]:
        found = list(torch.autograd.grad(F.cross_entropy(model(batch["x"]), batch["y"]), list(model.parameters())))
        return clipped(found, clip_inner)

    def clipped(found, norm):
        size = torch.cat([g.flatten() for g in found]).norm()
        return [g * min(1.0, norm / float(size)) for g in found] if norm else found

    first = grads()
    size = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        kept = [p.clone() for p in model.parameters()]
        for p, g in zip(model.parameters(), first, strict=True):
            p += rho * g / size
    second = clipped(grads(), clip_outer)
    with torch.no_grad():
        for p, k, g in zip(model.parameters(), kept, second, strict=True):
            p.copy_(k - 0.05 * g)


@pytest.mark.parametrize("outer", ["SAM", "ClipNorm"])
def test_wrappers_nest(outer: str) -> None:
    """[SAM, ClipNorm] clips inside each of SAM's passes, [ClipNorm, SAM] clips the gradient that SAM found."""
    methods = [wp.SAM(rho=0.5), ClipNorm(norm=0.1)]
    if outer == "ClipNorm":
        methods.reverse()
    ours, theirs, batch = net(), net(), data()
    recipe = wp.Recipe(*methods).attach(ours, wp.Classify(CLASSES))
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.05)
    for _ in range(3):
        recipe.step(batch, optimizer)
        sam_by_hand(theirs, batch, 0.5, *((0.1, None) if outer == "SAM" else (None, 0.1)))
    assert torch.allclose(weights(ours), weights(theirs), rtol=0, atol=1e-12)


def test_the_inner_wrapper_runs_in_each_pass_of_the_outer() -> None:
    calls: list[str] = []

    class Outer(wp.Method):
        null = None

        def gradient(self, compute, step):
            calls.append("outer")
            compute()
            compute()

    class Inner(wp.Method):
        null = None

        def gradient(self, compute, step):
            calls.append("inner")
            compute()

    train(Outer(), Inner(), steps=1)
    assert calls == ["outer", "inner", "inner"]
    calls.clear()
    train(Inner(), Outer(), steps=1)
    assert calls == ["inner", "outer"]


def test_duplicates_get_numbered_names_and_apart_noise() -> None:
    terms = logged(Consistency(), Consistency())
    assert {"Consistency.1", "Consistency.2"} <= set(terms)
    assert terms["Consistency.1"] != terms["Consistency.2"]


def test_adding_a_method_leaves_the_noise_of_another_alone() -> None:
    alone, beside = logged(Consistency()), logged(SquaredWeights(), Activity(), Consistency())
    assert alone["Consistency"] == beside["Consistency"]


def test_finish_ships_the_average_and_evaluating_only_borrows_it() -> None:
    model, recipe = train(HalfWeight(), Average())
    raw = weights(model)
    with recipe.evaluating() as inside:
        borrowed = weights(inside)
        assert not inside.training
    assert torch.equal(weights(model), raw)
    assert not torch.equal(borrowed, raw)
    assert model.training
    assert recipe.finish() is model
    assert not is_parametrized(model)
    with pytest.raises(wp.RecipeError, match="not attached"):
        recipe.detach()


def test_evaluating_leaves_each_part_in_its_own_mode() -> None:
    """A BatchNorm that a user froze in eval mode stays frozen after evaluating."""
    model = net(norm=True)
    recipe = wp.Recipe().attach(model, wp.Classify(CLASSES))
    model[1].eval()
    with recipe.evaluating():
        pass
    assert model.training
    assert not model[1].training


def test_evaluating_puts_weights_back_after_an_error() -> None:
    model, recipe = train(Average())
    raw = weights(model)
    with pytest.raises(KeyError), recipe.evaluating():
        raise KeyError
    assert torch.equal(weights(model), raw)


def test_attached_anew_training_starts_at_the_beginning() -> None:
    """A recipe used before gives another model what a fresh recipe gives it."""
    schedule = wp.Linear(0.0, 1.0)
    recipe = wp.Recipe(SquaredWeights(strength=schedule), Consistency())
    results = []
    for _ in range(2):
        model = net()
        recipe.attach(model, wp.Classify(CLASSES), steps=4)
        optimizer = sgd(model)
        for _ in range(4):
            recipe.step(data(), optimizer)
        results.append(weights(model))
        recipe.detach()
    assert torch.equal(*results)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 4, 7), (7, 5)])
def test_uneven_microbatches_equal_the_large_batch(sizes: tuple[int, ...]) -> None:
    def build() -> list[wp.Method]:
        elr = wp.ELR(rows=12, classes=CLASSES)
        return [elr, SquaredWeights(), Activity(), wp.SAM(rho=0.1), ClipNorm(), Average(), TimesLoss()]

    (whole, a), (parts, b) = train(*build()), train(*build(), batch=parts_of(data(), *sizes))
    assert torch.allclose(weights(whole), weights(parts), rtol=0, atol=1e-13)
    for (k, u), (_, v) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.allclose(u.double(), v.double(), rtol=0, atol=1e-13), k


def test_terms_of_microbatches_add_up_to_those_of_the_large_batch() -> None:
    model, batch = net(), data()
    recipe = wp.Recipe(Activity(), SquaredWeights()).attach(model, wp.Classify(CLASSES))
    whole = recipe.step(batch, sgd(model, lr=0.0))
    parts = recipe.step(parts_of(batch, 1, 4, 7), sgd(model, lr=0.0))
    assert {k: float(v) for k, v in whole.items()} == pytest.approx({k: float(v) for k, v in parts.items()}, rel=1e-12)
    assert not any(v.requires_grad for v in whole.values())
