"""The papers that the library implements, one row each; code cites them by id."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ..workbench.errors import BadInput

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

FIELDS = {
    "id": str, "title": str, "arxiv": str, "year": int, "family": str, "kind": str, "mechanism": str, "headline": str,
    "symptoms": list,
}  # fmt: skip


@cache
def papers() -> dict[str, dict[str, Any]]:
    """Every row of the catalogue by id.

    A row has id, title, arxiv, year, family and kind; ``mechanism``, what the paper does in our words; ``headline``,
    its main figure, or ``""``; and ``symptoms``, keys of ``wellposed.papers.symptoms``. How far a paper is, is not in
    the file: ``status.status_of`` derives it.

    Raises:
        BadInput: for a catalogue that cannot be read.
    """
    return read_catalogue(files(__name__) / "catalogue.jsonl")


def read_catalogue(file: Traversable) -> dict[str, dict[str, Any]]:
    """The rows of a catalogue, a JSON object a line.

    Raises:
        BadInput: for a file that cannot be read, or a line that is no row; names the file and the line.
    """
    try:
        lines = file.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the catalogue {file} cannot be read: {error}") from error
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            problem = _problem(row) or ("repeats an id" if row["id"] in rows else "")
        except (ValueError, RecursionError) as error:
            problem = f"is no JSON ({error})"
        if problem:
            raise BadInput(f"line {number} of the catalogue {file} {problem}")
        rows[row["id"]] = row
    return rows


def paper(id: str) -> dict[str, Any]:
    """One row.

    Raises:
        KeyError: if no row has this id.
    """
    try:
        return papers()[id]
    except KeyError:
        raise KeyError(f"no paper has the id '{id}'") from None


def _problem(row: Any) -> str:
    """What keeps this from being a row, or nothing."""
    if not isinstance(row, dict):
        return "is no JSON object"
    for field, kind in FIELDS.items():
        if not isinstance(row.get(field), kind):
            return f"has no field '{field}' of type {kind.__name__}"
    return ""
