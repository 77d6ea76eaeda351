"""The status of a paper: derived from what is built and what was run, never typed."""

from __future__ import annotations

from typing import Literal

from ..core.registry import parts_of
from . import evidence, paper

Status = Literal["planned", "built", "verified", "null", "contradicted", "stale"]
BY_VERDICT: dict[str, Status] = {"PASS": "verified", "NULL": "null", "FAIL": "contradicted"}


def status_of(id: str) -> Status:
    """How far a paper is.

    ``planned`` without a part that cites it, ``built`` with one, and where its claim has been run ``verified``,
    ``null`` or ``contradicted`` by the verdict, or ``stale`` if the code that was run is not the code that is here.

    Raises:
        KeyError: for an id that is in no row of the catalogue.
        BadInput: for a damaged evidence file.
    """
    paper(id)
    if not parts_of(id):
        return "planned"
    found = evidence.read(id)
    if found is None or id not in evidence.claimed():
        return "built"
    return "stale" if evidence.is_stale(found) else BY_VERDICT[found["verdict"]]
