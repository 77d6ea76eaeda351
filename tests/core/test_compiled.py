"""torch.compile in place after attach, and its wrapper through through(); taps included."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from core_methods import (
    CLASSES,
    Activity,
    Average,
    ClipNorm,
    Consistency,
    HalfWeight,
    SquaredWeights,
    data,
    net,
    sgd,
    weights,
)  # fmt: skip
from torch import nn

import wellposed as wp


class Net(nn.Sequential):
    """A forward of its own: torch compiles its own containers' forward only behind a wrapper."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x)
        return x


def build(norm: bool = False) -> nn.Module:
    return Net(*net(norm=norm))


def methods() -> list[wp.Method]:
    elr = wp.ELR(rows=12, classes=CLASSES)
    return [
        HalfWeight(),
        elr,
        Activity(layers=("0", "2")),
        Consistency(),
        SquaredWeights(),
        wp.SAM(),
        ClipNorm(),
        Average(),
    ]


def run(
    compile: Callable[[wp.Recipe, nn.Module], object], steps: int = 4, norm: bool = False
) -> tuple[torch.Tensor, dict]:
    torch._dynamo.reset()
    model = build(norm)
    recipe = wp.Recipe(*methods()).attach(model, wp.Classify(CLASSES), steps=10)
    compile(recipe, model)
    optimizer = sgd(model)
    for _ in range(steps):
        terms = recipe.step(data(), optimizer)
    return weights(model), {k: float(v) for k, v in terms.items()}


def eager(recipe: wp.Recipe, model: nn.Module) -> None:
    pass


def in_place(recipe: wp.Recipe, model: nn.Module) -> None:
    model.compile(backend="aot_eager")


def wrapped(recipe: wp.Recipe, model: nn.Module) -> None:
    recipe.through(torch.compile(model, backend="aot_eager"))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("compile", [in_place, wrapped])
def test_compiled_equals_eager_with_eight_methods(compile, norm: bool) -> None:
    (a, terms), (b, compiled) = run(eager, norm=norm), run(compile, norm=norm)
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert compiled == pytest.approx(terms, rel=1e-9)
    assert terms["Activity"] > 0


@pytest.mark.parametrize("in_place_", [False, True])
def test_steps_do_not_compile_again_and_again(in_place_: bool) -> None:
    """After two updates the graphs are reused: taps, switched statistics and new Step objects need no others."""
    torch._dynamo.reset()
    graphs = []

    def counting(graph, example):
        graphs.append(graph)
        return graph.forward

    model = build(norm=True)
    recipe = wp.Recipe(Activity(layers=("0",)), Consistency(), wp.SAM()).attach(model, wp.Classify(CLASSES))
    if in_place_:
        model.compile(backend=counting)
    else:
        recipe.through(torch.compile(model, backend=counting))
    optimizer = sgd(model)
    for _ in range(2):
        recipe.step(data(), optimizer)
    after_two = len(graphs)
    assert after_two > 0, "nothing was compiled"
    for _ in range(12):
        recipe.step(data(), optimizer)
    assert len(graphs) == after_two


def test_attach_takes_the_compiled_wrapper_too() -> None:
    torch._dynamo.reset()
    model = net()
    compiled = torch.compile(model, backend="aot_eager")
    recipe = wp.Recipe(SquaredWeights(), wp.SAM()).attach(compiled, wp.Classify(CLASSES))
    assert recipe.bare is model
    recipe.step(data(), sgd(model))
    twin = net()
    wp.Recipe(SquaredWeights(), wp.SAM()).attach(twin, wp.Classify(CLASSES)).step(data(), sgd(twin))
    assert torch.allclose(weights(model), weights(twin), rtol=0, atol=1e-12)
    assert recipe.detach() is model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the compiler's own modules
def test_the_default_compiler_agrees() -> None:
    """The real code generator on one small model, where a C++ compiler is installed."""
    if not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()

    results = []
    for wrap in (lambda model: model, torch.compile):
        model = build()
        recipe = wp.Recipe(Activity(), SquaredWeights()).attach(model, wp.Classify(CLASSES))
        recipe.through(wrap(model))
        for _ in range(2):
            recipe.step(data(), sgd(model))
        results.append(weights(model))
    assert torch.allclose(*results, rtol=0, atol=1e-10)
