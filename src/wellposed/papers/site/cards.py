"""The page of one paper, or of one technique that belongs to no paper of the catalogue."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
from typing import Any

import torch
from torch import nn

from ...core.card import card
from ...core.method import Method, default_of, fields_of
from ...core.registry import parts_of
from ...core.task import Task
from .. import evidence, paper
from ..status import status_of
from ..symptoms import SYMPTOMS
from .formulas import display
from .words import plain, table

STATUS = {
    "planned": "not built yet",
    "built": "without a verdict yet",
    "verified": "its claim passed on this code",
    "null": "its claim was run, and the effect is not significant at this scale",
    "contradicted": "its claim was run and failed here",
    "stale": "the code has changed since its claim was run",
}


def paper_page(id: str, drawing: str | None) -> str:
    """The card of a paper as Markdown.

    Args:
        id: of the catalogue.
        drawing: of its evidence; None where there is none.
    """
    row, status, parts = paper(id), status_of(id), parts_of(id)
    facts = [
        f"[{row['family']}](../families/{row['family']}.md)",
        str(row["year"]),
        f"[arXiv {row['arxiv']}](https://arxiv.org/abs/{row['arxiv']})",
        f"`{id}`",
    ]
    blocks = [
        _front(row["title"], boost=2 if parts else 1),
        f"# {plain(row['title'])}",
        f"{' · '.join(facts)}\n{{ .facts }}",
        f'<span class="status {status}">{status}</span> {STATUS[status]}',
    ]
    blocks.append(f"**Idea.** {plain(row['mechanism'])}")
    if row["headline"]:
        blocks.append(f"**The paper reports.** {plain(row['headline'])}")
    treats = [f"[{plain(SYMPTOMS[key].sentence)}](../symptoms.md#{key})" for key in row["symptoms"]]
    blocks.append("**Against.** " + " ".join(treats))
    for part in parts:
        blocks += _part(part)
    if parts:
        blocks += _evidence(id, drawing)
    return "\n\n".join(blocks) + "\n"


def technique_page(part: Any) -> str:
    """The card of a technique that cites no paper of the catalogue, as Markdown."""
    family = part.family
    blocks = [
        _front(part.__name__, boost=2),
        f"# {part.__name__}",
        f"[{family}](../families/{family}.md) · of no paper in the catalogue\n{{ .facts }}",
        *_part(part)[1:],  # its name is the title
    ]
    return "\n\n".join(blocks) + "\n"


def _front(title: str, boost: int) -> str:
    """Title and weight in the search: what is built comes before what is planned."""
    quoted = title.replace("\\", "\\\\").replace('"', '\\"')
    return f'---\ntitle: "{quoted}"\nsearch:\n  boost: {boost}\n---'


def _part(part: Any) -> list[str]:
    said = card(part)
    blocks = [f"## {part.__name__}", plain(said.summary), f"**Computes.** {plain(said.computes)}"]
    if said.formula:
        blocks.append(display(said.formula))
    blocks += [
        f"**When it helps.** {plain(said.helps)}",
        f"**When not.** {plain(said.avoid)}",
        f"**Defaults.** {plain(said.defaults)}",
    ]
    if rows := settings_of(part):
        blocks.append(table(["setting", "default", "meaning"], rows))
    blocks.append(f"**Cost.** {plain(said.cost)}")
    if isinstance(part, type) and issubclass(part, Method) and part.reads:
        reads = ", ".join(f"`{key}`" for key in part.reads)
        blocks.append(f"**How to call it.** It reads {reads} of the batch or of the model's outputs.")
    else:
        blocks.append("**How to call it.**")
    blocks += [f"```python\n{snippet(part)}```", f"**Reference.** {plain(said.reference)}"]
    return blocks


def _evidence(id: str, drawing: str | None) -> list[str]:
    """What was claimed, how it was run, what came out, and the drawing."""
    if id not in evidence.claimed():
        return ["## Evidence", "No claim has been written yet."]
    found = evidence.read(id)
    if found is None:
        claim = evidence.claim_of(id)
        return ["## Evidence", plain(claim.statement), f"Not run yet: `wellposed reproduce {id}` runs it."]
    seeds = found["seeds"]
    span = f"seeds {seeds[0]} to {seeds[-1]}" if seeds == list(range(seeds[0], seeds[-1] + 1)) else f"seeds {seeds}"
    blocks = [
        "## Evidence",
        f"**Claim.** {plain(found['statement'])}",
        f"**Arena.** {plain(found['arena'])}",
        f"**Verdict.** {plain(evidence.in_words(found))} ({span})",
        f'<figure class="evidence">{drawing}</figure>',
    ]
    if damaged := evidence.mutation_in_words(found):
        blocks.append(f"**Damaged on purpose**, the claim must not pass: {plain(damaged)}.")
    blocks.append(f"`wellposed reproduce {id}` runs it again; [what the words mean](../evidence.md).")
    return blocks


def settings_of(part: Any) -> list[list[str]]:
    """Name, default and meaning (with range and the values a search tries) of every setting of a part."""
    meanings = _arguments(part)
    if isinstance(part, type) and issubclass(part, Method):
        rows = []
        for field in fields_of(part):
            if field.init:
                default = "required" if default_of(field) is dataclasses.MISSING else f"`{default_of(field)!r}`"
                meaning = plain(meanings.get(field.name, "").rstrip("."))
                rows.append([f"`{field.name}`", default, meaning + _range(field.metadata)])
        return rows
    rows = []
    for name, parameter in _parameters(part).items():
        default = "required" if parameter.default is parameter.empty else f"`{_shown(parameter.default)}`"
        rows.append([f"`{name}`", default, plain(meanings.get(name, "").rstrip("."))])
    return rows


def _range(meta: Any) -> str:
    said = ""
    if meta.get("above") is not None:
        said += f"; above {meta['above']:g}"
    elif meta.get("low", -math.inf) > -math.inf:
        said += f"; at least {meta['low']:g}"
    if meta.get("high", math.inf) < math.inf:
        said += f", at most {meta['high']:g}"
    if meta.get("grid"):
        said += "; worth trying: " + ", ".join(f"`{value!r}`" for value in meta["grid"])
    return said


def _arguments(part: Any) -> dict[str, str]:
    """What the docstring's section Args says of each argument."""
    doc = inspect.cleandoc(part.__doc__ or "")
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", doc + "\n", re.M)
    found: dict[str, str] = {}
    for match in re.finditer(r"^ {4}(\S[^:\n]*): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M):
        for name in match[1].split(","):
            found[name.strip()] = re.sub(r"\s+", " ", match[2])
    return found


def _parameters(part: Any) -> dict[str, inspect.Parameter]:
    found = inspect.signature(part).parameters
    return {n: p for n, p in found.items() if n != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _shown(value: Any) -> str:
    """A default as it can be written in code; for what has no such form, three dots."""
    text = getattr(value, "__name__", repr(value))
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return "..."
    return str(text)


def snippet(part: Any, **settings: Any) -> str:
    """Code that uses a part, made from its fields or its signature.

    Args:
        part: a method, or whatever cites a paper.
        settings: fields of a method to write out; default those without a useful default of their own, with the
            values of its ``example``.
    """
    name = part.__name__
    if isinstance(part, type) and issubclass(part, Method):
        for field in fields_of(part):
            open_ = default_of(field) is dataclasses.MISSING or default_of(field) in ((), None, "")
            if open_ and field.name in part.example:
                settings.setdefault(field.name, part.example[field.name])
        call = _call(f"wp.{name}", [f"{k}={v!r}" for k, v in settings.items()])
        return (
            "import wellposed as wp\n\n"
            f"recipe = wp.Recipe({call})\n"
            "recipe.attach(model, task, steps=1000)  # before the optimizer is built; steps: planned updates\n"
            "terms = recipe.step(batch, optimizer)\n"
        )
    needed = [
        f"{n}=..." if p.kind is p.KEYWORD_ONLY else {"params": "model.parameters()"}.get(n, n)
        for n, p in _parameters(part).items()
        if p.default is p.empty
    ]
    call = _call(f"wp.{name}", needed)
    if isinstance(part, type) and issubclass(part, Task):
        lines = [f"task = {call}", "recipe = wp.Recipe().attach(model, task)", "terms = recipe.step(batch, optimizer)"]
    elif isinstance(part, type) and issubclass(part, torch.optim.Optimizer):
        lines = [f"optimizer = {call}"]
    elif isinstance(part, type) and issubclass(part, nn.Module):
        lines = [f"module = {call}"]
    else:
        lines = [f"result = {call}"]
    return "import wellposed as wp\n\n" + "\n".join(lines) + "\n"


def _call(name: str, arguments: list[str]) -> str:
    line = f"{name}({', '.join(arguments)})"
    return line if len(line) < 70 else f"{name}(\n    " + ",\n    ".join(arguments) + ",\n)"
