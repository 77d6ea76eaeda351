"""What ``Recipe.attach`` checks and registers."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from .errors import RecipeError
from .method import Method
from .task import Batch, Task

if TYPE_CHECKING:
    from .recipe import Recipe

OPTIONAL_KEYS = {"index"}  # what a batch may carry beside the task's own keys


def attach(recipe: Recipe, model: nn.Module, task: Task, example: Batch | None) -> list[RemovableHandle]:
    """Check the whole recipe, then set up each method and its taps; undo everything where one fails."""
    if not isinstance(task, Task):
        raise RecipeError(f"the task must be a wellposed Task such as Classify(), got {task!r}")
    names = {m: recipe.name_of(m) for m in recipe.listed}
    written = {key for m in names for key in m.writes}
    if example is not None:
        _need(set(task.reads) - written, set(example), f"task {type(task).__name__}", "the example batch")
    for m, name in names.items():
        _check_strength(m, name)
        _check_target(m, name, task)
        known = set(task.yields) | written | (set(example) if example is not None else set(task.reads) | OPTIONAL_KEYS)
        _need(set(m.reads), known, name, f"task {type(task).__name__}")
    replacing = [n for m, n in names.items() if m.replaces]
    if len(replacing) > 1:
        raise RecipeError(f"{' and '.join(replacing)} each replace the loss; keep one of them")

    done: list[Method] = []
    owner: dict[tuple[nn.Module, str], str] = {}
    hooks: list[RemovableHandle] = []
    try:
        for m, name in names.items():
            before = _parametrized(model)
            done.append(m)
            m.setup(model, task)
            added = [key for key, count in _parametrized(model).items() if count > before.get(key, 0)]
            if twice := [key for key in added if key in owner]:
                for layer, tensor in twice:  # a second look at the same weight would not be undone exactly
                    del layer.parametrizations[tensor][before[layer, tensor] :]  # type: ignore[index, union-attr]
                layer, tensor = twice[0]
                path = next(path for path, module in model.named_modules() if module is layer)
                raise RecipeError(
                    f"{owner[layer, tensor]} and {name} both reparametrise '{path}.{tensor}'; "
                    "keep one, or give them different layers"
                )
            owner |= dict.fromkeys(added, name)
            _check_taps(m, name, model)
        known = {n for n, _ in model.named_parameters()}
        for m, name in names.items():
            if taken := [n for n in m.edits if n not in known]:
                raise RecipeError(f"{name} edits '{taken[0]}' in place, and it is reparametrised; keep one of the two")
        for tap in dict.fromkeys(t for m in names for t in m.taps):
            hooks += [model.get_submodule(tap).register_forward_hook(_Recorder(recipe, tap))]
    except BaseException:
        for hook in hooks:
            hook.remove()
        for m in reversed(done):
            m.teardown(model)
        raise
    return hooks


class _Recorder:
    """Forward hook that puts a submodule's output where ``step.taps`` finds it."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        self.recipe, self.name = recipe, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        run = self.recipe._run
        if run.tapping and run.current is not None:
            run.current.taps[self.name] = output


def window_of(given: Any) -> list[Batch]:
    """The microbatches of one update as a list; refuses what is no batch."""
    window = list(given) if isinstance(given, Iterable) else [given]
    if not window:
        raise ValueError("step needs a batch or a non-empty list of microbatches, got an empty list")
    for raw in window:
        if not isinstance(raw, Mapping):
            raise TypeError(
                f"a batch is a mapping of names to tensors such as {{'x': ..., 'y': ...}}, got a {type(raw).__name__}"
            )
    return window


def warn_inexact(name: str) -> None:
    """Said once per recipe: a term that couples samples cannot see across microbatches."""
    warnings.warn(
        f"{name} couples the samples of a batch; over several microbatches it is the mean of their terms, "
        "not the term of the large batch",
        stacklevel=5,
    )


def _need(wanted: set[str], known: set[str], who: str, where: str) -> None:
    for key in sorted(wanted - known):
        close = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise RecipeError(f"{who} needs '{key}'; {where} gives {sorted(known)}{hint}")


def _check_strength(m: Method, name: str) -> None:
    values = [m.strength(t) for t in (0.0, 0.5, 1.0)] if callable(m.strength) else [m.strength]
    for v in values:
        if not isinstance(v, int | float) or not math.isfinite(v):
            raise RecipeError(f"{name}: the strength must be a finite number or a schedule of them, got {v!r}")


def _check_target(m: Method, name: str, task: Task) -> None:
    if m.targets is not None and task.target not in m.targets:
        raise RecipeError(
            f"{name} works with {' or '.join(sorted(m.targets))} targets; "
            f"task {type(task).__name__} has {task.target or 'no'} targets"
        )


def _check_taps(m: Method, name: str, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    for tap in m.taps:
        if tap not in modules:
            close = difflib.get_close_matches(tap, modules, 3) or [n for n in modules if n][:8]
            raise RecipeError(f"{name} taps '{tap}', which the model does not have; it has {', '.join(close)}, ...")


def _parametrized(model: nn.Module) -> dict[tuple[nn.Module, str], int]:
    return {
        (module, tensor): len(stack)
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for tensor, stack in module.parametrizations.items()  # type: ignore[union-attr, operator]
    }
