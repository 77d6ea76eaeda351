"""Pages that lead to the cards: families, gallery, symptoms, reference; and the numbers of the start page."""

from __future__ import annotations

import inspect
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ...core.card import card
from ...core.registry import FAMILIES, catalogue, parts_of
from .. import evidence, papers
from ..status import Status, status_of
from ..symptoms import SYMPTOMS
from .words import first_sentence, plain, table

TITLES = {"selfsup": "Self-supervision", "rl": "Reinforcement learning", "inverse": "Inverse problems"}
ORDER: tuple[Status, ...] = ("verified", "null", "contradicted", "stale", "built", "planned")


def title(family: str) -> str:
    """A family's name as a heading."""
    return TITLES.get(family, family.capitalize())


def unlisted() -> dict[str, Any]:
    """Methods of the library that cite no paper of the catalogue, by name."""
    return {name: cls for name, cls in catalogue().items() if not cls.paper and cls.family in FAMILIES}


def family_page(family: str, ids: list[str]) -> str:
    """What is built of a family as a table, what is planned as a list."""
    built, planned = [], []
    for id in ids:
        row, status, parts = papers()[id], status_of(id), parts_of(id)
        if not parts:
            planned.append(f"- [{plain(row['title'])}](../papers/{id}.md)")
            continue
        found = evidence.read(id)
        names = ", ".join(f"[{p.__name__}](../papers/{id}.md)" for p in parts)
        costs = dict.fromkeys(first_sentence(card(p).cost) for p in parts)
        built.append([names, plain(row["title"]), _mark(status), plain(measured(found)), plain(" / ".join(costs))])
    for name, cls in unlisted().items():
        if cls.family == family:
            link = f"[{name}](../techniques/{name}.md)"
            built.append(
                [link, "of no paper in the catalogue", _mark("built"), "", plain(first_sentence(card(cls).cost))]
            )
    blocks = [f"# {title(family)}"]
    if find_spec(f"wellposed.{family}") and (said := _about(family)):
        blocks.append(plain(said))
    if built:
        blocks.append(table(["technique", "paper", "status", "measured here", "cost"], built))
    if planned:
        blocks += ["## Not built yet", "\n".join(planned)]
    return "\n\n".join(blocks) + "\n"


def _mark(status: Status) -> str:
    return f'<span class="status {status}">{status}</span>'


def _about(family: str) -> str:
    """The first line of the family's package, without the family's name."""
    line = (inspect.getdoc(import_module(f"wellposed.{family}")) or "").partition("\n")[0]
    said = line.partition(": ")[2] or line
    return said[:1].upper() + said[1:]


def measured(found: dict[str, Any] | None) -> str:
    """The heart of a verdict in words; empty without evidence."""
    return evidence.in_words(found).partition(": ")[2].rpartition(";")[0] if found else ""


def gallery_page(records: dict[str, dict[str, Any]]) -> str:
    """Every drawing as a thumbnail that leads to its card, by family."""
    blocks = [
        "---\nhide:\n  - toc\nsearch:\n  exclude: true\n---",
        "# Gallery",
        "What was measured, one drawing a claim. Green passed, grey showed no significant effect, orange failed.",
    ]
    for family in FAMILIES:
        own = {id: found for id, found in records.items() if papers()[id]["family"] == family}
        if own:
            cells = "\n\n".join(_thumbnail(id, found) for id, found in own.items())
            blocks += [f"## {title(family)}", f'<div class="gallery" markdown>\n\n{cells}\n\n</div>']
    return "\n\n".join(blocks) + "\n"


def _thumbnail(id: str, found: dict[str, Any]) -> str:
    alt = plain(f"{id}: {evidence.in_words(found)}")
    names = plain(", ".join(p.__name__ for p in parts_of(id)) or id)
    return f"[![{alt}](plots/{id}.svg){{ loading=lazy }} {names}](papers/{id}.md)"


def symptoms_page(ids: list[str]) -> str:
    """What is wrong with a model, and which techniques are for it: built ones with their measurement, then planned."""
    blocks = [
        "# Symptoms",
        "What is wrong with your model, and what has been proposed against it. What was measured here comes first.",
    ]
    for key, symptom in SYMPTOMS.items():
        blocks += [f"## {plain(symptom.sentence)} {{ #{key} }}", f"*{plain(', '.join(symptom.words))}*"]
        treats = [id for id in ids if key in papers()[id]["symptoms"]]
        built = sorted((id for id in treats if parts_of(id)), key=lambda id: ORDER.index(status_of(id)))
        lines = []
        for id in built:
            names = ", ".join(p.__name__ for p in parts_of(id))
            said = measured(evidence.read(id))
            status = status_of(id)
            lines.append(f"- [{names}](papers/{id}.md) {_mark(status)}" + (f" {plain(said)}" if said else ""))
        if lines:
            blocks.append("\n".join(lines))
        if planned := [id for id in treats if not parts_of(id)]:
            names = ", ".join(f"[{plain(id)}](papers/{id}.md)" for id in planned)
            blocks.append(f"Not built yet: {names}")
    return "\n\n".join(blocks) + "\n"


def reference_page(family: str) -> str:
    """The API of a family, read from its docstrings by mkdocstrings."""
    return (
        f"# {title(family)}: reference\n\n::: wellposed.{family}\n    options:\n"
        "      show_root_heading: false\n      show_submodules: true\n"
    )


def counts(ids: list[str]) -> str:
    """How far the catalogue is, as a table: one line a status."""
    found = Counter(status_of(id) for id in ids)
    lines = [[_mark(s), str(found[s])] for s in ORDER if found[s]]
    return table(["status", f"papers, {len(ids)} in all"], lines)
