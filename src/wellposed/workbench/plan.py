"""What `wellposed compare` will run: which rows, on which seeds, in how many rounds, decided before anything is spent.

If everything fits the budget, all rows train on the same 10 seeds. Otherwise rows race at full training length on 2, 4
and 8 seeds, the lower half leaving each time, and the last 3 are confirmed on 10 seeds never used before. Settings are
chosen before the race, on its first seed. Where the budget does not allow that, the first cut is made after one seed;
and if need be, settings are chosen only for those that stay after the first round, or a later one, and until then rows
run with the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from .errors import BadInput

BASELINE = "baseline"
EARLY_STOPPING = "early-stopping"  # a row made of baseline runs: the selected epoch instead of the last one
SEEDS = 10
RACE = (2, 2, 4)  # fresh seeds of each round: 2, 4 and 8 in all
QUICK_RACE = (1, 1, 2, 4)  # where many rows do not fit the budget otherwise: the first cut after one seed
CONFIRMED = 3  # rows that leave the race for confirmation
DECIDABLE = 5  # with fewer seeds 2^-n > .05: nothing can be significant
_BLOCK = 1000  # seeds reserved for each purpose, so that what judges never shares a seed with what chooses


class Job(NamedTuple):
    """One training run: a row, a seed, and which of the row's candidate settings."""

    row: str
    seed: int
    candidate: int = 0


@dataclass(frozen=True)
class Row:
    """A technique to compare, with the settings among which validation data choose (often just one)."""

    id: str
    candidates: tuple[Mapping[str, Any], ...] = ({},)
    why_not: str = ""  # the reason, a sentence, when it does not apply to this task


@dataclass(frozen=True)
class Plan:
    """What will be run.

    `seeds` are the race's, or everybody's when the protocol is "all" (`confirm_seeds` is then empty).
    """

    protocol: Literal["all", "race"]
    baseline: Row
    rows: tuple[Row, ...]
    not_applicable: tuple[Row, ...]
    seeds: tuple[int, ...]
    confirm_seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    runs: int  # tuning included; for a race, if no row fails and the published settings stay
    tuning_runs: int  # as many as can be expected, if who stays to be tuned is not known
    race: tuple[int, ...]  # fresh seeds of each round
    tune_after: int  # rounds of the race before settings are chosen
    seconds: float  # expected wall-clock time
    costs: Mapping[str, float]
    direction: Literal["max", "min"]
    worth: float | None
    race_on: str
    note: str = ""  # a sentence when the plan does not fit the budget, or cannot decide
    over_budget: bool = False

    def setting(self, job: Job) -> Mapping[str, Any]:
        """The candidate setting that a job trains with."""
        row = next(row for row in (self.baseline, *self.rows) if row.id == job.row)
        return row.candidates[job.candidate]

    def summary(self) -> str:
        """The plan in one line, to be printed before anything is spent."""
        how = (
            f"{len(self.seeds)} paired seeds each"
            if self.protocol == "all"
            else f"race on {'/'.join(map(str, accumulate(self.race)))} paired seeds, then {CONFIRMED} on "
            f"{len(self.confirm_seeds)} fresh ones"
        )
        if self.tune_after:
            how += f", strengths chosen after round {self.tune_after}"
        return f"{len(self.rows)} techniques + baseline, {how}: {self.runs} runs, about {self.seconds / 60:.1f} min"


def make_plan(
    rows: Sequence[Row],
    costs: Mapping[str, float],
    *,
    baseline: Row | None = None,
    budget_seconds: float | None = None,
    jobs: int = 1,
    seeds: int | None = None,
    tuning_seeds: int = 2,
    first_seed: int = 0,
    direction: Literal["max", "min"] = "max",
    worth: float | None = None,
    race_on: str = "validation",
    strict: bool = False,
) -> Plan:
    """Decides the protocol from measured costs.

    Args:
        rows: the techniques, without baseline and early stopping, which are always there. Those with `why_not` are
            carried along and cost nothing.
        costs: seconds per full-length run of each applicable row and of "baseline", with `jobs` runs at a time.
        baseline: its candidate settings, usually one: what validation data choose for it, when to stop, is a row.
        budget_seconds: time to spend; None is no limit. A plan, not a guillotine: a race that needs longer goes on
            and `Plan.note` says how long.
        seeds: the user's own number; all rows then get exactly this many, whatever the budget.
        race_on: the score that decides who stays in the race.
        strict: refuse a plan that does not fit the budget.

    Raises:
        BadInput: nothing to compare, a bad number, or (strict) a budget that is too small.
    """
    baseline = baseline or Row(BASELINE)
    techniques = tuple(row for row in rows if not row.why_not)
    _check(rows, techniques, baseline, costs)
    _check_numbers(budget_seconds, jobs, seeds, first_seed, worth)

    def seconds(total: float) -> float:
        return max(total / jobs, max(costs[row.id] for row in (baseline, *techniques)))

    tuned = [row for row in (baseline, *techniques) if len(row.candidates) > 1]
    tuning_runs = tuning_seeds * sum(len(row.candidates) for row in tuned)
    tuning = tuning_seeds * sum(len(row.candidates) * costs[row.id] for row in tuned)
    count = seeds or SEEDS
    runs = count * (len(techniques) + 1)
    total = count * sum(costs[row.id] for row in (baseline, *techniques))
    protocol: Literal["all", "race"] = "all"
    race: tuple[int, ...] = RACE
    tune_after = 0
    if seeds is None and budget_seconds is not None and seconds(tuning + total) > budget_seconds:
        # The race's first seeds choose, too, so that the runs of the published settings are its own.
        more_runs = tuning_runs - tuning_seeds * len(tuned)
        more = tuning - tuning_seeds * sum(costs[row.id] for row in tuned)
        average = sum(costs[row.id] for row in techniques) / len(techniques)  # who survives is not known yet
        for rounds, after in _races(len(techniques), bool(tuned)):
            share = rows_left(len(techniques), rounds)[after] / len(techniques)
            race_baseline, race_rows = _race_runs(len(techniques), rounds)
            raced = race_baseline * costs[BASELINE] + race_rows * average
            if raced >= total:
                continue
            protocol, best = "race", (rounds, after, share, race_baseline + race_rows, raced)
            if seconds(share * more + raced) <= budget_seconds:
                break
        if protocol == "race":
            race, tune_after, share, runs, total = best
            tuning_runs, tuning = round(share * more_runs), share * more

    note = ""
    needed = seconds(tuning + total)
    if budget_seconds is not None and needed > budget_seconds:
        what = "the race" if protocol == "race" else "this plan"
        note = (
            f"{what} needs about {needed / 60:.1f} minutes and the budget leaves {budget_seconds / 60:.1f}; "
            "a larger budget, fewer techniques or a cheaper model would fit"
        )
        if strict:
            raise BadInput(note)
    if count < DECIDABLE:
        note = "; ".join(filter(None, (note, f"below {DECIDABLE} seeds no winner can be declared")))

    def block(number: int, size: int) -> tuple[int, ...]:
        start = first_seed + number * _BLOCK
        return tuple(range(start, start + size))

    judged = block(0, count)
    return Plan(
        protocol=protocol,
        baseline=baseline,
        rows=techniques,
        not_applicable=tuple(row for row in rows if row.why_not),
        seeds=judged if protocol == "all" else block(1, sum(race)),
        confirm_seeds=() if protocol == "all" else judged,
        tuning_seeds=block(1 if protocol == "race" else 2, tuning_seeds) if tuned else (),
        runs=runs + tuning_runs,
        tuning_runs=tuning_runs,
        race=race,
        tune_after=tune_after,
        seconds=needed,
        costs=dict(costs),
        direction=direction,
        worth=worth,
        race_on=race_on,
        note=note,
        over_budget=budget_seconds is not None and needed > budget_seconds,
    )


def _check(rows: Sequence[Row], techniques: Sequence[Row], baseline: Row, costs: Mapping[str, float]) -> None:
    ids = [row.id for row in rows]
    for id in ids:
        if id in (BASELINE, EARLY_STOPPING) or ids.count(id) > 1:
            raise BadInput(f"each technique must have an id of its own and '{id}' is already taken")
    if baseline.id != BASELINE:
        raise BadInput(f"the baseline's id must be '{BASELINE}', not '{baseline.id}'")
    if not techniques:
        reasons = "; ".join(f"{row.id}: {row.why_not}" for row in rows[:3])
        raise BadInput(f"no technique applies, so there is nothing to compare ({reasons or 'none was named'})")
    for row in (baseline, *techniques):
        cost = costs.get(row.id, math.nan)
        if not 0 < cost < math.inf:
            raise BadInput(f"the seconds per run of '{row.id}' must be measured and positive; got {cost}")
        if not row.candidates:
            raise BadInput(f"'{row.id}' needs at least one candidate setting")


def _check_numbers(budget: float | None, jobs: int, seeds: int | None, first_seed: int, worth: float | None) -> None:
    if seeds is not None and not 1 <= seeds <= _BLOCK:
        raise BadInput(f"the number of seeds must be between 1 and {_BLOCK}; got {seeds}")
    if budget is not None and not 0 < budget < math.inf:
        raise BadInput(f"the budget must be a positive time; got {budget} seconds")
    if worth is not None and not 0 < worth < math.inf:
        raise BadInput(f"the smallest gain worth having must be positive; got {worth}")
    if jobs < 1:
        raise BadInput(f"at least one run must go on at a time; got {jobs} jobs")
    if first_seed < 0:
        raise BadInput(f"seeds are counted from 0; got {first_seed}")


def rows_left(rows: int, race: Sequence[int]) -> list[int]:
    """Rows before the race and after each of its rounds: the better half stays, and 3 after the last."""
    left = [rows]
    for round in range(len(race)):
        if left[-1] > CONFIRMED:
            left.append(CONFIRMED if round == len(race) - 1 else max(CONFIRMED, math.ceil(left[-1] / 2)))
    return left


def _races(rows: int, tuned: bool) -> Iterator[tuple[tuple[int, ...], int]]:
    """Races, and after how many of their rounds settings are chosen, from the most thorough to the quickest."""
    yield RACE, 0
    for after in range(len(rows_left(rows, QUICK_RACE)) if tuned else 1):
        yield QUICK_RACE, after


def _race_runs(rows: int, race: Sequence[int]) -> tuple[int, int]:
    """Runs of the baseline and of all techniques together in race and confirmation."""
    baseline, others = SEEDS, min(rows, CONFIRMED) * SEEDS
    for fresh, entered in zip(race, rows_left(rows, race)[:-1], strict=False):
        baseline, others = baseline + fresh, others + entered * fresh
    return baseline, others
