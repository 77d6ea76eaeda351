"""What came of a comparison: runs, rows and rounds, and the word for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .plan import BASELINE, DECIDABLE, EARLY_STOPPING, Job
from .statistics import ALPHA, Interval, equivalent, paired_interval

Scores = Mapping[str, Any]
"""Of a run: "last", "selected" (metric on test data at that epoch), "validation" and perhaps its standard "error"."""


@dataclass(frozen=True)
class Failure:
    """A run that did not finish: one line for the table, and the traceback apart."""

    reason: str
    details: str = ""


@dataclass(frozen=True)
class Comparison:
    """A paired mean difference, + is better, with its 95 % interval and joint p."""

    gain: float
    interval: Interval | None
    p: float


@dataclass(frozen=True)
class Result:
    """What may be said of one row. The fields are those of a row of results.json."""

    id: str
    verdict: str
    why: str = ""
    round: str = ""  # "all", "confirm", "race 1" .. "race 3", "tuning"
    seeds: tuple[int, ...] = ()
    candidate: int = 0  # the setting that validation data chose
    candidate_scores: tuple[float | None, ...] = ()  # mean validation score of each candidate; None if it failed
    value: float | None = None  # mean metric at the last epoch
    gains: tuple[float, ...] = ()  # one per seed
    gain: float | None = None
    interval: Interval | None = None
    sd: float | None = None  # of the paired difference (for the baseline: of its value)
    p: float | None = None
    wins: int = 0
    needed_seeds: int | None = None
    tie_group: bool = False  # the winner, and what cannot be told apart from it
    beyond_early_stopping: Comparison | None = None


@dataclass(frozen=True)
class Round:
    """One phase of the protocol as it happened."""

    name: str
    seeds: tuple[int, ...]
    rows: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The judged comparison: rows best first (then dropped, failed, not applicable), and every run it rests on."""

    baseline: Result
    rows: tuple[Result, ...]
    winner: str | None
    tie_group: tuple[str, ...]  # the winner and what cannot be told apart from it, cheapest first
    rounds: tuple[Round, ...]
    records: Mapping[Job, Scores | Failure]
    warnings: tuple[str, ...] = ()

    def scores(self, result: Result) -> list[Scores]:
        """The scores behind a result, one per seed of `result.seeds`; early stopping has the baseline's."""
        row = BASELINE if result.id == EARLY_STOPPING else result.id
        candidate = self.baseline.candidate if row == BASELINE else result.candidate
        found = (self.records[Job(row, seed, candidate)] for seed in result.seeds)
        return [scores for scores in found if not isinstance(scores, Failure)]


def verdict(
    diffs: Sequence[float],
    p_better: float,
    p_worse: float,
    worth: float | None = None,
    corrected: float = 0.0,
) -> str:
    """The word for a row that ran on all its seeds.

    equivalent: the 90 % interval lies within +-`worth`: certain or not, it is no difference worth having.
    better: joint p <= .05 and the 95 % interval above 0; worth it: moreover above `worth`. worse: the mirror image of
    better. Otherwise, and always below 5 seeds, undecided.
    """
    if len(diffs) < DECIDABLE:
        return "undecided"
    if worth is not None and equivalent(diffs, worth, corrected):
        return "equivalent"
    low, high = paired_interval(diffs, corrected=corrected)
    if p_better <= ALPHA and low > 0:
        return "worth it" if worth is not None and low > worth else "better"
    return "worse" if p_worse <= ALPHA and high < 0 else "undecided"
