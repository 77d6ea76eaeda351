"""Running claims again: in worker processes, against the evidence that is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..workbench.errors import BadInput
from ..workbench.pool import Pool
from . import evidence, papers
from .claim import LOOKS, check

RANK = {"PASS": 0, "NULL": 1, "FAIL": 2}


@dataclass(frozen=True)
class Result:
    """One claim, run again.

    Attributes:
        id: of the paper.
        found: the record; None if the claim could not be run.
        before: the record that was there; None if there was none.
        error: why it could not be run.
    """

    id: str
    found: dict[str, Any] | None
    before: dict[str, Any] | None
    error: str | None = None

    @property
    def verdict(self) -> str:
        """PASS, NULL, FAIL or ERROR."""
        return self.found["verdict"] if self.found else "ERROR"

    @property
    def failed(self) -> bool:
        """Worse than the evidence that was there, or, where there was none, FAIL. An ERROR is no verdict."""
        before = self.before["verdict"] if self.before else "NULL"
        return self.found is not None and RANK[self.verdict] > RANK[before]

    def document(self) -> dict[str, Any]:
        """As plain data: id, verdict, the verdict before, the error, and the whole record."""
        before = self.before["verdict"] if self.before else None
        return {
            "id": self.id, "verdict": self.verdict, "before": before, "error": self.error, "evidence": self.found,
        }  # fmt: skip

    def __str__(self) -> str:
        said = evidence.in_words(self.found) if self.found else f"ERROR: {self.error}"
        changed = self.before and self.before["verdict"] != self.verdict
        return f"{self.id}: {said}" + (f" (was {self.before['verdict']})" if changed and self.before else "")


def chosen(ids: Sequence[str] = (), *, all: bool = False, stale: bool = False, family: str | None = None) -> list[str]:
    """Ids of claims, sorted: those named, or all, those of a family, or those with stale or no evidence.

    Raises:
        BadInput: if nothing or too much is asked for, or a name has no claim.
    """
    if sum([bool(ids), all, stale, family is not None]) != 1:
        raise BadInput("name papers (wellposed reproduce elr sam), or give one of --all, --stale and --family")
    known = evidence.claimed()
    if ids:
        for id in ids:
            evidence.claim_of(id)
        return sorted(set(ids))
    if family is not None:
        found = [id for id in known if papers()[id]["family"] == family]
        if not found:
            families = sorted({papers()[id]["family"] for id in known})
            raise BadInput(f"no claim in family '{family}'; there are some in {', '.join(families)}")
        return found
    return [id for id in known if all or (old := evidence.read(id)) is None or evidence.is_stale(old)]


def reproduce(
    ids: Sequence[str],
    *,
    seeds: int | None = None,
    first_seed: int | None = None,
    jobs: int | None = None,
    folder: Path | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run claims and write their evidence, each as it finishes; a claim that crashes is its own result.

    Args:
        ids: of papers with a claim.
        seeds: at most so many paired seeds, at least 5; default the claim's own number, 20.
        first_seed: seeds from here on, in place of the frozen ones.
        jobs: worker processes; default one a core.
        folder: where evidence is written, and compared with. Default: the repository's, if this is a checkout, and only
            for the frozen seeds; nothing is written otherwise.
        on_result: called with each result as it comes.

    Returns:
        results in the order of ``ids``; ``exit_code`` sums them up.

    Raises:
        BadInput: for an id without a claim, too few seeds, or a folder that does not exist.
    """
    if seeds is not None and seeds < LOOKS[0]:
        raise BadInput(f"a claim needs at least {LOOKS[0]} paired seeds, got {seeds}")
    if first_seed is not None and first_seed < 0:
        raise BadInput(f"seeds are 0, 1, 2, ...; got {first_seed}")
    if folder is not None and not folder.is_dir():
        raise BadInput(f"{folder} is no folder: create it first")
    frozen = seeds is None and first_seed is None
    target = folder or (evidence.FOLDER if frozen and evidence.FOLDER.is_dir() else None)
    specs = []
    for id in ids:
        own = evidence.claim_of(id).seeds
        start = own[0] if first_seed is None else first_seed
        specs.append({"id": id, "seeds": list(own) if frozen else list(range(start, start + (seeds or len(own))))})
    results: dict[int, Result] = {}
    workers = min(jobs or os.cpu_count() or 1, max(1, len(specs)))
    with Pool(run_one, workers) as pool:
        for index, answer in pool.run(specs):
            id = ids[index]
            before = evidence.read(id, folder)
            if isinstance(answer, dict):
                result = Result(id, answer, before)
                if target:
                    evidence.write(answer, target)
            else:
                result = Result(id, None, before, answer.reason)
            results[index] = result
            on_result(result)
    return [results[i] for i in range(len(specs))]


def exit_code(results: Sequence[Result], strict: bool = False) -> int:
    """3 if a claim failed anew, else 1 if one could not be run, else, with ``strict``, 4 if one is NULL, else 0."""
    if any(r.failed for r in results):
        return 3
    if any(r.found is None for r in results):
        return 1
    return 4 if strict and any(r.verdict == "NULL" for r in results) else 0


def run_one(spec: dict[str, Any]) -> dict[str, Any]:
    """The job of a worker: one claim, ``{"id", "seeds"}`` to its record."""
    claim = evidence.claim_of(spec["id"])
    return evidence.record(claim, check(claim, spec["seeds"]))
