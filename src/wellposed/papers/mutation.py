"""Mutation: a stated damage to a technique, under which its claim must lose the PASS. A claim that cannot fail says
nothing."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

Function = Callable[..., Any]


class MutationError(RuntimeError):
    """A mutation that names nothing it could change: a defect of the claim."""


@dataclass(frozen=True)
class Mutation:
    """One change of the technique's code.

    Attributes:
        words: what is damaged, for people: ``"strength 0"``, ``"the sign of the penalty turned round"``.
        target: ``"module:name"`` of what is changed: a function, ``Class.method``, or a class, which stands for its
            constructor. Code of the library, not of its claims.
        by: takes the original function and returns its replacement.
    """

    words: str
    target: str
    by: Callable[[Function], Function]

    def __post_init__(self) -> None:
        module, _, name = self.target.partition(":")
        if not name or not module.startswith("wellposed.") or (module + ".").startswith("wellposed.papers."):
            raise ValueError(f"a mutation changes a technique, 'wellposed.family.module:name'; got '{self.target}'")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Change the target, for everybody, and change it back at the end, also after an exception.

        A method is replaced in its class; a function in every module of the library that holds it. What functions of
        the library have cached is forgotten before and after: it may come from the other code.

        Raises:
            MutationError: if there is no such target.
        """
        owner, name = self._place()
        if isinstance(owner, type):
            had, raw = name in vars(owner), inspect.getattr_static(owner, name)
            setattr(owner, name, _rewrapped(raw, self.by))
            _forget()
            try:
                yield
            finally:
                if had:
                    setattr(owner, name, raw)
                else:
                    delattr(owner, name)
                _forget()
            return
        original = getattr(owner, name)
        replacement = _fresh(self.by(original), original)
        _swap(original, replacement)
        _forget()
        try:
            yield
        finally:
            _swap(replacement, original)
            _forget()

    def _place(self) -> tuple[Any, str]:
        """The class or module that holds the target, and its name there."""
        module, _, path = self.target.partition(":")
        *outer, name = path.split(".")
        try:
            owner = functools.reduce(getattr, outer, import_module(module))
            found = getattr(owner, name)
        except (ImportError, AttributeError) as error:
            raise MutationError(f"nothing to mutate at '{self.target}': {error}") from error
        if isinstance(found, type):
            return found, "__init__"
        if not callable(found) and not isinstance(inspect.getattr_static(owner, name), property):
            raise MutationError(f"'{self.target}' is no function, method or class")
        return owner, name


# ---- ready-made changes
def negated(original: Function) -> Function:
    """The result with its sign turned; of tuples, lists and dicts every member's."""
    return lambda *args, **kwargs: _scaled(original(*args, **kwargs), -1)


def zero(original: Function) -> Function:
    """The result times 0."""
    return lambda *args, **kwargs: _scaled(original(*args, **kwargs), 0)


def nothing(original: Function) -> Function:
    """Leaves things as they are: the first tensor it is given comes back unchanged, or None where it is given none."""

    def unchanged(*args: Any, **kwargs: Any) -> Any:
        return next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)

    return unchanged


def fixed(**values: Any) -> Callable[[Function], Function]:
    """These arguments, whatever the caller says: ``fixed(strength=0.0)`` on a class turns the technique off."""

    def by(original: Function) -> Function:
        signature = inspect.signature(original)
        unknown = sorted(set(values) - set(signature.parameters))
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            raise MutationError(f"{original.__qualname__} has no argument {', '.join(unknown)}")

        def called(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            for name, value in values.items():
                if name in signature.parameters:
                    bound.arguments[name] = value
                else:
                    kwargs_name = next(n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD)
                    bound.arguments[kwargs_name] = {**bound.arguments.get(kwargs_name, {}), name: value}
            return original(*bound.args, **bound.kwargs)

        return called

    return by


def _scaled(value: Any, factor: int) -> Any:
    if isinstance(value, Tensor | int | float):
        return factor * value
    if isinstance(value, Mapping):
        return {key: _scaled(inner, factor) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        inner = [_scaled(v, factor) for v in value]
        return type(value)(*inner) if hasattr(value, "_fields") else type(value)(inner)
    return value


# ---- putting a replacement in place
def _rewrapped(raw: Any, by: Callable[[Function], Function]) -> Any:
    """The replacement of a class attribute, of the same sort as the original."""
    if isinstance(raw, property):
        return property(by(raw.fget)) if raw.fget else raw
    if isinstance(raw, staticmethod | classmethod):
        return type(raw)(_fresh(by(raw.__func__), raw.__func__))
    return _fresh(by(raw), raw)


def _fresh(replacement: Function, original: Function) -> Function:
    """A function nobody else holds, with the original's name and attributes, so that it can be found and taken out."""

    @functools.wraps(original)
    def mutated(*args: Any, **kwargs: Any) -> Any:
        return replacement(*args, **kwargs)

    return mutated


def _swap(old: Any, new: Any) -> None:
    """Put ``new`` wherever a module of the library holds ``old``."""
    for module in _library():
        for key, value in list(vars(module).items()):
            if value is old:
                setattr(module, key, new)


def _forget() -> None:
    """Empty every ``functools.cache`` of the library outside the core, which no mutation reaches."""
    for module in _library():
        if not module.__name__.startswith("wellposed.core."):
            for value in list(vars(module).values()):
                for held in (value, *(vars(value).values() if isinstance(value, type) else ())):
                    if callable(clear := getattr(held, "cache_clear", None)):
                        clear()


def _library() -> list[ModuleType]:
    return [m for name, m in list(sys.modules.items()) if m is not None and (name + ".").startswith("wellposed.")]
