"""What techniques there are, as data and as text."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from ..core import Method
from ..core.card import card
from ..core.method import fields_of
from ..core.registry import catalogue, find
from ..papers import evidence, papers
from .errors import BadInput
from .rows import row_id

if TYPE_CHECKING:
    from rich.console import Console


def listing() -> list[dict[str, Any]]:
    """Every technique: id, name, family, slots, scope, tier, passes, papers, defaults and summary."""
    rows = [entry(cls) for cls in catalogue().values() if cls.family != "user"]
    return sorted(rows, key=lambda r: (r["family"], r["id"]))


def entry(cls: type[Method]) -> dict[str, Any]:
    """One technique as plain data."""
    required = {f.name: 2 for f in fields_of(cls) if f.default is dataclasses.MISSING}
    settings = {k: v for k, v in {**required, **cls.example}.items() if k != "model"}
    return {
        "id": row_id(cls),
        "name": cls.__name__,
        "family": cls.family,
        "slots": list(cls.slots()),
        "scope": cls.scope,
        "tier": cls.tier(),
        "passes": cls(**settings).passes(),
        "paper": list(cls.paper),
        "defaults": {
            f.name: None if f.default is dataclasses.MISSING else _plain(f.default) for f in fields_of(cls) if f.init
        },
        "grids": {f.name: list(map(_plain, f.metadata["grid"])) for f in fields_of(cls) if f.metadata.get("grid")},
        "exact": cls.exact,
        "summary": card(cls).summary,
    }


def describe(name: str) -> dict[str, Any]:
    """Paper facts, the cards of all techniques that serve a catalogue id (or of one class), and the evidence.

    Raises:
        BadInput: for a name that is neither.
    """
    served = [cls for cls in catalogue().values() if name.lower() in cls.paper]
    row = papers().get(name.lower())
    if not served and row is None:
        served = [find(name)]  # raises with the nearest names
        row = papers().get(served[0].paper[0]) if served[0].paper else None
    if not served and row is not None:
        raise BadInput(f"'{name}' ({row['title']}) is in the catalogue but not built yet")
    parts = [{**entry(cls), "card": dataclasses.asdict(card(cls))} for cls in served]
    ids = [row["id"]] if row else []
    return {"paper": row, "parts": parts, "evidence": {id: evidence.read(id) for id in ids}}


def print_listing(rows: list[dict[str, Any]], console: Console) -> None:
    """A table that fits 80 columns."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True)
    table.add_column("family", no_wrap=True)
    table.add_column("acts in", overflow="fold")
    table.add_column("passes", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["id"], row["family"], ", ".join(row["slots"]), f"{row['passes']:.3g}")
    console.print(table)
    console.print(f"{len(rows)} techniques; `wellposed show ID` prints a card")


def print_card(found: dict[str, Any], console: Console) -> None:
    """Paper and cards as readable text."""
    if found["paper"]:
        paper = found["paper"]
        console.print(paper["title"], style="bold", markup=False)
        console.print(f"{paper['id']}   arXiv {paper['arxiv']}   {paper['year']}   {paper['family']}\n")
    for part in found["parts"]:
        console.print(f"{part['name']}: {part['card']['summary']}", style="bold", markup=False)
        for section, text in part["card"].items():
            if section != "summary":
                console.print(f"\n{section.capitalize()}", style="bold")
                console.print(text, markup=False)
        defaults = json.dumps(part["defaults"], default=repr)
        console.print(f"\nslots {', '.join(part['slots'])}   scope {part['scope']}   passes {part['passes']:.3g}")
        console.print(f"defaults {defaults}\n", markup=False)
    for id in found["evidence"]:
        console.print("Evidence", style="bold")
        console.print(evidence.shown(id), markup=False)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
