"""The ranked table in the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wellposed.workbench.report.words import (
    Document,
    Numbers,
    Row,
    dig,
    printable,
    ranked,
    significant,
    unmeasured,
)

STYLES = {
    "better": "green",
    "worth it": "green",
    "tied": "cyan",
    "reference": "yellow",
    "worse": "red",
    "failed": "red",
}
GAP = 2  # blanks between columns
NAME = 22  # letters of a technique's name


class Column(NamedTuple):
    """A column; the narrower the terminal, the lower the `rank` must be for it to be shown."""

    title: str
    rank: int
    cell: Callable[[Row], str]
    baseline: str = ""
    left: bool = False


def print_table(
    document: Document, console: Console, all: bool = False, out: str | os.PathLike[str] | None = None
) -> None:
    """Print the rows by gain, with the baseline below, then what has no result and why.

    Args:
        document: a results document.
        console: where to; its width decides which columns are shown. Without a terminal, or with NO_COLOR, the
            output is plain text.
        all: show also what a race dropped.
        out: the folder of the comparison, to name the report and the recipe in it.
    """
    n = Numbers(document)
    aside = {"not applicable"} if all else {"not applicable", "dropped"}
    rows = [row for row in ranked(document) if row["verdict"] not in aside]
    columns = _fitting(_columns(document, n), rows, console.width)
    colored = console.is_terminal and not console.no_color

    def say(line: str) -> None:
        console.print(Text(printable(line)), soft_wrap=True)

    metric = document["metric"]
    say(document["headline"])
    say("")
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold" if colored else "")
    for column in columns:
        table.add_column(Text(column.title), justify="left" if column.left else "right", no_wrap=True)
    for row in rows:
        style = STYLES.get(row["verdict"], "") if colored else ""
        table.add_row(*(Text(column.cell(row)) for column in columns), style=style)
    table.add_row(*(Text(column.baseline) for column in columns))
    console.print(table)

    say("")
    unit = "percentage points of " if n.points else ""
    say(f"gain: paired difference in {unit}{metric['name']} to the baseline on test data, + is better, 95 % interval")
    if any(significant(row) for row in rows):
        say("*: better at the 5 % level of one joint test over all rows")
    hidden = [row for row in ranked(document) if row["verdict"] == "dropped"]
    if hidden and not all:
        say(f"dropped in the race: {', '.join(row['label'] for row in hidden)} (--all shows them)")
    for label, verdict, why in unmeasured(document):
        say(f"{verdict}: {label}: {why}")
    for warning in document["warnings"]:
        say(f"warning: {warning}")
    if out is not None:
        say("")
        say(f"report  {Path(out) / 'report.html'}")
        if document["winner"]:
            say(f"recipe  {Path(out) / 'recipe.toml'}")


def _columns(document: Document, n: Numbers) -> list[Column]:
    base = document["baseline"]
    sides = base["metrics"]

    def side(name: str, title: str, rank: int) -> list[Column]:
        if name not in sides:
            return []
        plain = n.metric(name, sides[name])
        return [Column(title, rank, lambda row: n.metric(name, dig(row, "metrics", name, "value")), plain)]

    def cost(kind: str, rank: int) -> Column:
        return Column(kind, rank, lambda row: n.ratio(dig(row, "cost", kind)), "1.00x")

    plain = n.value(base["value"]) + (f" (sd {n.value(base['sd'])})" if base["sd"] is not None else "")
    return [
        Column("verdict", 0, lambda row: row["verdict"], "baseline", left=True),
        Column("technique", 0, lambda row: _shortened(row["label"]), "none", left=True),
        Column("gain", 0, lambda row: n.gain(row["gain"]) + ("*" if significant(row) else " ")),
        Column("95 % interval", 1, lambda row: n.interval(row["interval"]), plain),
        Column("wins", 3, lambda row: f"{row['wins']}/{row['seeds']}" if row["seeds"] else ""),
        Column("last", 4, lambda row: n.value(dig(row, "last", "value")), n.value(base["last"])),
        Column("selected", 6, lambda row: n.value(dig(row, "selected", "value")), n.value(base["selected"])),
        *side("nll", "NLL", 7),
        *side("ece", "ECE", 8),
        *side("noise_accuracy", "with noise", 5),
        cost("time", 2),
        cost("memory", 9),
    ]


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= NAME else name[: NAME - 2] + ".."


def _fitting(columns: list[Column], rows: list[Row], width: int) -> list[Column]:
    """The most important columns that fit side by side, in their order."""

    def needed(column: Column) -> int:
        return max(len(text) for text in (column.title, column.baseline, *map(column.cell, rows))) + GAP

    shown = sorted(columns, key=lambda column: column.rank)
    while len(shown) > 3 and sum(map(needed, shown)) - GAP > width:
        shown.pop()
    return [column for column in columns if column in shown]
