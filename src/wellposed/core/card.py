"""Cards: the fixed sections of a technique's docstring as data."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

SECTIONS = ("Computes", "Helps", "Avoid", "Defaults", "Cost", "Reference")


@dataclass(frozen=True)
class Card:
    """What a technique says of itself; every section is one paragraph or more of plain text."""

    summary: str
    computes: str
    helps: str
    avoid: str
    defaults: str
    cost: str
    reference: str


def card(cls: type) -> Card:
    """Parse the docstring of a technique.

    Raises:
        ValueError: if a section is missing or empty.
    """
    doc = inspect.cleandoc(cls.__doc__ or "")
    found = {}
    for match in re.finditer(r"^(\w+):\n((?:[ ]{4}.*\n?|\n)+)", doc + "\n", re.M):
        found[match[1]] = " ".join(match[2].split())
    missing = [s for s in SECTIONS if not found.get(s)]
    if missing:
        raise ValueError(f"the docstring of {cls.__name__} lacks the sections {', '.join(missing)}")
    return Card(doc.partition("\n")[0], *(found[s] for s in SECTIONS))
