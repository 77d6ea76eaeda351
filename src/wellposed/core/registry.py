"""Finding techniques: every module of a family is one, and importing it registers its methods.

No list is kept by hand: adding a technique is adding its file.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from typing import Any

from . import citing
from .errors import RecipeError
from .method import Method, methods

FAMILIES = (
    "weights", "sparsity", "quantization", "objectives", "augmentation", "smoothness", "optimizers", "information",
    "transport", "selfsup", "generative", "diffusion", "inverse", "rl", "alignment", "adaptation", "tuning", "science",
    "theory", "applications",
)  # fmt: skip


@cache
def load_all() -> dict[str, str]:
    """Import every technique. Returns public name -> module, over all families (from each module's ``__all__``)."""
    names: dict[str, str] = {}
    for family in FAMILIES:
        try:
            package = importlib.import_module(f"wellposed.{family}")
        except ModuleNotFoundError as error:
            if error.name != f"wellposed.{family}":
                raise
            continue
        for info in pkgutil.iter_modules(package.__path__):
            if info.name.startswith("_"):
                continue
            module = importlib.import_module(f"wellposed.{family}.{info.name}")
            for name in module.__all__:
                if name in names:
                    raise ImportError(f"'{name}' is public in both {names[name]} and {module.__name__}")
                names[name] = module.__name__
    return names


def catalogue() -> dict[str, type[Method]]:
    """All methods by class name, those of the user included."""
    load_all()
    return dict(sorted(methods.items()))


def parts_of(paper: str) -> list[Any]:
    """What implements a paper: methods, and whatever cites it by ``@implements``. Empty for one not built."""
    return [cls for cls in catalogue().values() if paper in cls.paper] + citing.parts.get(paper, [])


def papers_of(part: Any) -> tuple[str, ...]:
    """Catalogue ids that a part cites: the other way round. Empty for a technique without a paper."""
    return tuple(getattr(part, "paper", ()))


def find(name: str) -> type[Method]:
    """The method with this class name or catalogue id, whatever the case.

    Raises:
        RecipeError: for an unknown name; suggests the nearest.
    """
    known: dict[str, type[Method]] = {}
    for cls in catalogue().values():
        for alias in (*cls.paper, cls.__name__):
            known[alias.lower()] = cls
    try:
        return known[name.lower()]
    except KeyError:
        close = difflib.get_close_matches(name.lower(), known, 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; `wellposed methods` lists them"
        raise RecipeError(f"unknown method '{name}'{hint}") from None
