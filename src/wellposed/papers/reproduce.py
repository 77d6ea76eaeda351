"""Running claims again: in worker processes, against the evidence that is there.

What has finished is kept in ``.wellposed/reproduce`` until the whole command has, so that an interrupted one goes on
where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from .. import __version__
from ..workbench.errors import BadInput
from ..workbench.store import Run, Store
from . import evidence, papers
from .claim import LOOKS, Claim, ClaimError, Outcome, check
from .mutation import MutationError
from .workers import Work, work_through

RANK = {"PASS": 0, "NULL": 1, "FAIL": 2}
TIMEOUT = 600.0
"""Seconds by the clock that a claim may take, its mutated run included."""
KEPT = Path(".wellposed/reproduce")
UNKNOWN = 40.0  # seconds expected of a claim that was never run: both runs at the goal of 20 s


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
    def contradicted(self) -> bool:
        """FAIL as in the evidence that was there: nothing new, and still to be seen."""
        return self.verdict == "FAIL" and self.before is not None and self.before["verdict"] == "FAIL"

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


def expected_seconds(id: str) -> float:
    """Of a claim and its mutated run together, by the record; a usual time where there is none."""
    found = evidence.read(id)
    return 2 * float(found["seconds"]) if found else UNKNOWN


def jobs_for(claims: int, jobs: int | None = None) -> int:
    """Worker processes for so many claims: one a core unless told otherwise."""
    return max(1, min(jobs or os.cpu_count() or 1, claims))


@dataclass(frozen=True)
class Watch:
    """Who is told of what happens.

    Attributes:
        begin: called once, with the ids that will be run; what was kept from an interrupted run is not among them.
        start: called as a claim starts.
        result: called with each result as it comes, kept ones first.
    """

    begin: Callable[[Sequence[str]], None] = lambda ids: None
    start: Callable[[str], None] = lambda id: None
    result: Callable[[Result], None] = lambda result: None


def reproduce(
    ids: Sequence[str],
    *,
    seeds: int | None = None,
    first_seed: int | None = None,
    jobs: int | None = None,
    timeout: float = TIMEOUT,
    within: float | None = None,
    folder: Path | None = None,
    kept: Path = KEPT,
    watch: Watch | None = None,
    work: Work | None = None,
) -> list[Result]:
    """Run claims and write their evidence, each as it finishes; a claim that crashes is its own result.

    The longest start first, so that none is left alone at the end; within a given time the shortest.

    Args:
        ids: of papers with a claim.
        seeds: at most so many paired seeds, at least 5; default the claim's own number, 20.
        first_seed: seeds from here on, in place of the frozen ones.
        jobs: worker processes; default one a core.
        timeout: seconds after which a claim is stopped, which is its result.
        within: seconds after which, going by recorded times, no claim may still be running: what would be is left out.
        folder: where evidence is written, and compared with. Default: the repository's, if this is a checkout, and only
            for the frozen seeds; nothing is written otherwise.
        kept: folder of what has finished; emptied when all have.
        watch: told of what happens.
        work: what a worker does with one claim; default ``run_one``.

    Returns:
        results in the order of ``ids``, without those left out; ``exit_code`` sums them up.

    Raises:
        BadInput: for an id without a claim, damaged evidence, too few seeds, or a folder that does not exist.
    """
    if seeds is not None and seeds < LOOKS[0]:
        raise BadInput(f"a claim needs at least {LOOKS[0]} paired seeds, got {seeds}")
    if first_seed is not None and first_seed < 0:
        raise BadInput(f"seeds are 0, 1, 2, ...; got {first_seed}")
    if jobs is not None and jobs < 1:
        raise BadInput(f"at least one job is needed, got {jobs}")
    if folder is not None and not folder.is_dir():
        raise BadInput(f"{folder} is no folder: create it first")
    frozen = seeds is None and first_seed is None
    target = folder or (evidence.FOLDER if frozen and evidence.FOLDER.is_dir() else None)
    watch, store = watch or Watch(), Store(kept)
    specs, before, runs = {}, {}, {}
    for id in ids:
        own = evidence.claim_of(id).seeds
        start = own[0] if first_seed is None else first_seed
        used = list(own) if frozen else list(range(start, start + (seeds or len(own))))
        specs[id] = {"id": id, "seeds": used, "code": evidence.code_hash(id)}
        before[id] = evidence.read(id, folder)
        runs[id] = _run(specs[id])
    results: dict[str, Result] = {}

    def tell(result: Result) -> None:
        if target and result.found:
            evidence.write(result.found, target)
        results[result.id] = result
        watch.result(result)

    for id in ids:
        if done := store.get(runs[id]):
            tell(Result(id, done["found"], done["before"]))
    todo = [id for id in ids if id not in results]
    cost = {id: expected_seconds(id) for id in todo}
    todo.sort(key=cost.__getitem__, reverse=within is None)
    watch.begin(todo)
    begin = monotonic()
    for index, answer in work_through(
        work or run_one, [specs[id] for id in todo], jobs_for(len(todo), jobs), timeout,
        may_start=lambda i: within is None or monotonic() - begin + cost[todo[i]] <= within,
        on_start=lambda i: watch.start(todo[i]),
    ):  # fmt: skip
        id = todo[index]
        if isinstance(answer, dict):
            store.put(runs[id], {"found": answer, "before": before[id]})
            tell(Result(id, answer, before[id]))
        else:
            tell(Result(id, None, before[id], answer.reason))
    for run in runs.values():
        store.path(run).unlink(missing_ok=True)
    with suppress(OSError):  # others may still need it
        store.folder.rmdir()
        kept.rmdir()
    return [results[id] for id in ids if id in results]


def _run(spec: dict[str, Any]) -> Run:
    """What the result of a claim depends on."""
    versions = {"wellposed": __version__, "torch": torch.__version__}
    return Run(spec["code"], {"claim": spec["id"], "seeds": spec["seeds"]}, "", 0, versions)


def exit_code(results: Sequence[Result], strict: bool = False) -> int:
    """3 if a claim failed anew, else 1 if one could not be run, else, with ``strict``, 4 if one is NULL, else 0."""
    if any(r.failed for r in results):
        return 3
    if any(r.found is None for r in results):
        return 1
    return 4 if strict and any(r.verdict == "NULL" for r in results) else 0


def run_one(spec: dict[str, Any]) -> dict[str, Any]:
    """The job of a worker: one claim, ``{"id", "seeds", "code"}`` to its record.

    The hash is that of the code before the workers loaded it: what is edited while they run makes the record stale.
    """
    return run_claim(evidence.claim_of(spec["id"]), spec["seeds"]) | {"code": spec["code"]}


def run_claim(claim: Claim, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """Run a claim, then with the technique damaged, and return the record.

    Raises:
        ClaimError: if what was measured cannot be judged, or if the damage leaves a PASS a PASS: such a claim would
            pass whatever the technique did.
        MutationError: if there is nothing to damage where the claim says.
    """
    outcome = check(claim, seeds)
    found = evidence.record(claim, outcome)
    found["mutation"] = damaged(claim, outcome)
    if outcome.verdict == found["mutation"]["verdict"] == "PASS":
        raise ClaimError(f"PASS, but also with {claim.mutation.words}: this claim cannot fail")
    return found


def damaged(claim: Claim, outcome: Outcome) -> dict[str, Any]:
    """What the mutation does to a claim on the seeds that gave its verdict: words, verdict and estimate.

    A run that breaks has lost its PASS, too: its verdict is ERROR, with the reason.
    """
    with claim.mutation.applied():
        try:
            after = check(claim, outcome.seeds)
        except MutationError:
            raise
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return {"words": claim.mutation.words, "verdict": "ERROR", "error": why}
    return {"words": claim.mutation.words, "verdict": after.verdict, "estimate": evidence.short(after.estimate)}
