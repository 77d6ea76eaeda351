"""What techniques and papers there are, as data and as text."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import torch

from ..core import Method, Task, citing
from ..core.card import card
from ..core.method import default_of, fields_of
from ..core.registry import FAMILIES, catalogue, papers_of, parts_of
from ..papers import evidence, papers
from ..papers.search import Index, entries
from ..papers.status import Status, status_of
from ..papers.symptoms import SYMPTOMS
from .errors import BadInput
from .rows import row_id

if TYPE_CHECKING:
    from rich.console import Console

STATUSES: tuple[str, ...] = get_args(Status)
KINDS = {torch.optim.Optimizer: "optimizer", Task: "task", torch.nn.Module: "module", object: "class"}


# ---- techniques
def listing() -> list[dict[str, Any]]:
    """Every technique: id, name, family, slots, scope, tier, passes, papers, defaults and summary."""
    rows = [entry(cls) for cls in catalogue().values() if cls.family != "user"]
    return sorted(rows, key=lambda r: (r["family"], r["id"]))


def entry(cls: type[Method]) -> dict[str, Any]:
    """One technique as plain data."""
    required = {f.name: 2 for f in fields_of(cls) if default_of(f) is dataclasses.MISSING}
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
            f.name: None if default_of(f) is dataclasses.MISSING else _plain(default_of(f))
            for f in fields_of(cls)
            if f.init
        },
        "grids": {f.name: list(map(_plain, f.metadata["grid"])) for f in fields_of(cls) if f.metadata.get("grid")},
        "exact": cls.exact,
        "summary": card(cls).summary,
    }


def part_entry(part: Any) -> dict[str, Any]:
    """One part with its card: a method, or a function, module, optimizer or task that cites papers."""
    written = dataclasses.asdict(card(part))
    if isinstance(part, type) and issubclass(part, Method):
        return {**entry(part), "kind": "method", "card": written}
    root, *inside = part.__module__.split(".")
    kind = "function"
    if isinstance(part, type):
        kind = next(name for base, name in KINDS.items() if issubclass(part, base))
    return {
        "name": part.__name__,
        "kind": kind,
        "module": part.__module__,
        "family": inside[0] if root == "wellposed" else "user",
        "signature": part.__name__ + _signature(part),
        "paper": list(papers_of(part)),
        "card": written,
    }


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


# ---- one paper or part
def describe(name: str) -> dict[str, Any]:
    """The row of a paper with its status, the cards of all parts that serve it, and its evidence.

    Args:
        name: a catalogue id, or the name of a part, which is described with the first paper that it cites.

    Raises:
        BadInput: for a name that is neither; names the nearest.
    """
    row = papers().get(name.lower())
    if row:
        parts, ids = parts_of(row["id"]), [row["id"]]
    else:
        parts = [_part(name)]
        ids = list(papers_of(parts[0]))
        row = papers().get(ids[0]) if ids else None
    return {
        "paper": {**row, "status": status_of(row["id"])} if row else None,
        "parts": [part_entry(part) for part in parts],
        "evidence": {id: evidence.read(id) for id in ids},
    }


def print_card(found: dict[str, Any], console: Console) -> None:
    """Paper, cards and evidence as readable text; formulas, which are LaTeX, are left to the site."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False)

    paper = found["paper"]
    if paper:
        arxiv = f"arXiv {paper['arxiv']}   " if paper["arxiv"] else ""
        say(paper["title"], "bold")
        say(f"{paper['id']}   {arxiv}{paper['year']}   {paper['family']}   {paper['status']}\n")
        say(paper["mechanism"])
        if paper["headline"]:
            say(f"The paper's figure: {paper['headline']}")
        say(f"For: {' '.join(SYMPTOMS[s].sentence for s in paper['symptoms'])}\n")
    for part in found["parts"]:
        say(f"{part['name']}: {part['card']['summary']}", "bold")
        for section, text in part["card"].items():
            if section not in ("summary", "formula") and text:
                say(f"\n{section.capitalize()}", "bold")
                say(text)
        if part["kind"] == "method":
            say(f"\nslots {', '.join(part['slots'])}   scope {part['scope']}   passes {part['passes']:.3g}")
            say(f"defaults {json.dumps(part['defaults'], default=repr)}")
        else:
            say(f"\n{part['kind']} {part['module']}.{part['signature']}")
        also = [id for id in part["paper"] if not paper or id != paper["id"]]
        say(f"serves {', '.join(also)}, too\n" if also else "")
    if paper and not found["parts"]:
        say("Not built yet.")
    else:
        for id in found["evidence"]:
            say("Evidence" if len(found["evidence"]) == 1 else f"Evidence of {id}", "bold")
            say(evidence.shown(id))


# ---- the catalogue
def paper_listing(family: str | None = None, status: str | None = None) -> list[dict[str, Any]]:
    """Every paper with its status, the names of its parts and its evidence.

    Raises:
        BadInput: for an unknown family or status, or a damaged evidence file.
    """
    for what, given, known in (("family", family, FAMILIES), ("status", status, STATUSES)):
        if given is not None and given not in known:
            raise BadInput(f"unknown {what} '{given}'; there are {', '.join(known)}")
    rows = [
        {
            **{field: row[field] for field in ("id", "title", "family", "kind")},
            "status": status_of(id),
            "parts": [part.__name__ for part in parts_of(id)],
            "evidence": evidence.read(id),
        }
        for id, row in papers().items()
        if family in (None, row["family"])
    ]
    return [row for row in rows if status in (None, row["status"])]


def print_papers(rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each paper, and counts by status. Ids are never cut: what is left of a line is the title's."""
    status, family = (max((len(row[field]) for row in rows), default=0) for field in ("status", "family"))
    wide = min(24, max((len(row["id"]) for row in rows), default=0))
    console.print(f"{'status':{status}}  {'family':{family}}  year  {'id':{wide}}  title", style="bold", no_wrap=True)
    for row in rows:
        year = papers()[row["id"]]["year"]
        line = f"{row['status']:{status}}  {row['family']:{family}}  {year}  {row['id']:{wide}}  {row['title']}"
        console.print(cut(line, console.width), markup=False, no_wrap=True)
    counts = Counter(row["status"] for row in rows)
    told = ", ".join(f"{counts[s]} {s}" for s in STATUSES if counts[s])
    console.print(f"{len(rows)} papers{': ' * bool(told)}{told}")


# ---- search
@cache
def index() -> Index:
    """The index over everything, made once."""
    return Index(entries())


def hits(text: str, limit: int = 10) -> list[dict[str, Any]]:
    """What a search finds, best first.

    Raises:
        BadInput: for a limit below 1.
    """
    if limit < 1:
        raise BadInput(f"--limit must be at least 1, got {limit}")
    return [
        {
            "id": found.id,
            "title": found.title,
            "family": found.family,
            "status": status_of(found.id) if found.id in papers() else "built",
            "parts": [part.__name__ for part in found.parts],
            "mechanism": found.mechanism,
            "symptoms": list(found.symptoms),
            "score": round(score, 3),
        }
        for found, score in index().search(text, limit)
    ]


def hint(text: str, found: Sequence[Any]) -> str:
    """What to try instead, where words are unknown or nothing was found; empty if all is well."""
    unknown = index().unknown(text)
    better = [f"{' or '.join(map(repr, near))} for '{word}'" for word, near in unknown.items() if near]
    if better:
        return f"did you mean {', '.join(better)}?"
    if found:
        return ""
    return "say what goes wrong, as in `wellposed search my labels are wrong`; `wellposed papers` lists all papers"


def print_hits(found: list[dict[str, Any]], console: Console) -> None:
    """Three lines for each hit; a star marks what is built."""
    for row in found:
        star = "*" if row["parts"] else " "
        console.print(f"{star} {row['id']}", style="bold", markup=False, end="")
        console.print(f"  {row['family']}, {row['status']}", markup=False)
        console.print(cut(f"  {row['title']}", console.width), markup=False, no_wrap=True)
        console.print(cut(f"  {row['mechanism']}", console.width), markup=False, no_wrap=True)
    if any(row["parts"] for row in found):
        console.print("\n* built; `wellposed show ID` prints its card")


def cut(line: str, width: int) -> str:
    """At most so many characters, the last an ellipsis where something was cut."""
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def _part(name: str) -> Any:
    """The part with this name, whatever the case."""
    cited = [part for found in citing.parts.values() for part in found]
    known = {part.__name__.lower(): part for part in [*cited, *catalogue().values()]}
    if name.lower() in known:
        return known[name.lower()]
    close = difflib.get_close_matches(name.lower(), {*papers(), *known}, 3)
    near = f"did you mean {' or '.join(close)}?" if close else "`wellposed search` finds some"
    raise BadInput(f"no paper and no technique is called '{name}'; {near}")


def _signature(part: Any) -> str:
    """Parameters with their defaults; the types are in the docstring's words."""
    signature = inspect.signature(part)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _plain(value: Any) -> Any:
    """As JSON data; None for what every user must say."""
    if value is dataclasses.MISSING:
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
