"""Citing: which paper a part implements. Methods cite by ``paper=``, everything else by ``@implements``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Part = TypeVar("Part", bound=Callable[..., Any])
parts: dict[str, list[Any]] = {}  # catalogue id -> what implements it, in order of definition


def implements(*ids: str) -> Callable[[Part], Part]:
    """Decorator: this function, module, optimizer or task implements the papers with these catalogue ids.

    ``@implements("git-re-basin")``. What is decorated carries a card in its docstring, as a method does; the functions
    it is made of need neither. Ids are checked against the catalogue by the tests, not here.

    Raises:
        TypeError: without an id, or with something that is no text.
    """
    if not ids or not all(isinstance(i, str) for i in ids):
        raise TypeError("@implements needs catalogue ids: @implements('git-re-basin')")

    def cite(part: Part) -> Part:
        part.paper = ids  # type: ignore[attr-defined]
        for id in ids:
            parts.setdefault(id, []).append(part)
        return part

    return cite
