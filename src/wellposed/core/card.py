"""Cards: the fixed sections of a technique's docstring as data."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

SECTIONS = ("Computes", "Helps", "Avoid", "Defaults", "Cost", "Reference")


@dataclass(frozen=True)
class Card:
    """What a technique says of itself; every section is one paragraph or more of plain text.

    ``formula`` is LaTeX, one display formula a line, empty where the docstring has no such section.
    """

    summary: str
    computes: str
    helps: str
    avoid: str
    defaults: str
    cost: str
    reference: str
    formula: str = ""


def card(part: Any) -> Card:
    """Parse the docstring of a technique: a class or a function.

    Raises:
        ValueError: if a section is missing or empty.
    """
    doc = inspect.cleandoc(part.__doc__ or "")
    found = {}
    for match in re.finditer(r"^(\w+):\n((?:[ ]{4}.*\n?|\n)+)", doc + "\n", re.M):
        lines = [line.strip() for line in match[2].splitlines() if line.strip()]
        found[match[1]] = ("\n" if match[1] == "Formula" else " ").join(lines)
    missing = [s for s in SECTIONS if not found.get(s)]
    if missing:
        raise ValueError(f"the docstring of {part.__name__} lacks the sections {', '.join(missing)}")
    return Card(
        summary=doc.partition("\n")[0],
        formula=found.get("Formula", ""),
        **{s.lower(): found[s] for s in SECTIONS},
    )
