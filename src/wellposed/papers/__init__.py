"""The papers that the library implements, one row each; code cites them by id."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def papers() -> dict[str, dict[str, Any]]:
    """Every row (id, title, arxiv, year, family, kind) by id."""
    text = (files(__name__) / "catalogue.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return {row["id"]: row for row in rows}


def paper(id: str) -> dict[str, Any]:
    """One row.

    Raises:
        KeyError: if no row has this id.
    """
    try:
        return papers()[id]
    except KeyError:
        raise KeyError(f"no paper has the id '{id}'") from None
