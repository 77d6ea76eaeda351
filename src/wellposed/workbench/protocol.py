"""The protocol of `wellposed compare`: which runs are made, and what may be said afterwards.

Nothing here trains. `make_plan` decides before anything is spent; `run_protocol` asks an injected `evaluate` for runs,
phase by phase, and judges their scores. So the protocol can be simulated (and is, in the tests: false winners when
nothing works, power when something does).

Rules: every seed is shared by all rows (split, initialisation, batches). If everything fits the budget, all rows
train on the same 10 seeds. Otherwise rows race at full training length on 2, 4 and 8 seeds, the lower half leaving each
time, and the last 3 are confirmed on 10 seeds never used before; gains are quoted from those, which removes the
winner's curse. Validation scores choose candidate settings and the rows that stay in the race; test scores only judge.
Settings are chosen before the race, on its first seed. Where the budget does not allow that, the first cut is made
after one seed; and if need be, settings are chosen only for those that stay after the first round, or a later one, and
until then rows run with the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np

from .errors import BadInput
from .statistics import ALPHA, Array, Interval, equivalent, moments, needed_seeds, paired_interval, signflip_maxt

BASELINE = "baseline"
EARLY_STOPPING = "early-stopping"  # a row made of baseline runs: the selected epoch instead of the last one
SEEDS = 10
RACE = (2, 2, 4)  # fresh seeds of each round: 2, 4 and 8 in all
QUICK_RACE = (1, 1, 2, 4)  # where many rows do not fit the budget otherwise: the first cut after one seed
CONFIRMED = 3  # rows that leave the race for confirmation
DECIDABLE = 5  # with fewer seeds 2^-n > .05: nothing can be significant
_BLOCK = 1000  # seeds reserved for each purpose, so that what judges never shares a seed with what chooses

Scores = Mapping[str, Any]
"""Of a run: "last", "selected" (metric on test data at that epoch), "validation" and perhaps its standard "error"."""


class ProtocolError(RuntimeError):
    """The comparison has no reference: the baseline itself failed on every seed."""


class Job(NamedTuple):
    """One training run: a row, a seed, and which of the row's candidate settings."""

    row: str
    seed: int
    candidate: int = 0


@dataclass(frozen=True)
class Failure:
    """A run that did not finish: one line for the table, and the traceback apart."""

    reason: str
    details: str = ""


Evaluate = Callable[[list[Job]], Iterable[tuple[Job, Scores | Failure]]]


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
            share = _left(len(techniques), rounds)[after] / len(techniques)
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
        note = _join(note, f"below {DECIDABLE} seeds no winner can be declared")

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


def _left(rows: int, race: Sequence[int]) -> list[int]:
    """Rows before the race and after each of its rounds: the better half stays, and 3 after the last."""
    left = [rows]
    for round in range(len(race)):
        if left[-1] > CONFIRMED:
            left.append(CONFIRMED if round == len(race) - 1 else max(CONFIRMED, math.ceil(left[-1] / 2)))
    return left


def _races(rows: int, tuned: bool) -> Iterator[tuple[tuple[int, ...], int]]:
    """Races, and after how many of their rounds settings are chosen, from the most thorough to the quickest."""
    yield RACE, 0
    for after in range(len(_left(rows, QUICK_RACE)) if tuned else 1):
        yield QUICK_RACE, after


def _race_runs(rows: int, race: Sequence[int]) -> tuple[int, int]:
    """Runs of the baseline and of all techniques together in race and confirmation."""
    baseline, others = SEEDS, min(rows, CONFIRMED) * SEEDS
    for fresh, entered in zip(race, _left(rows, race)[:-1], strict=False):
        baseline, others = baseline + fresh, others + entered * fresh
    return baseline, others


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


def run_protocol(
    plan: Plan,
    evaluate: Evaluate,
    *,
    corrected: float = 0.0,
    on_phase: Callable[[str, list[Job]], None] | None = None,
) -> Outcome:
    """Runs a plan and judges it.

    Args:
        evaluate: given jobs, yields every one of them, in any order, with its scores or a Failure. A score
            "last", "selected" or "validation" that is not finite is a failure too.
        corrected: n_test / n_train for the correction of Nadeau and Bengio, see `paired_interval`.
        on_phase: told the name of each phase ("tuning", "race 1", ..., "confirm" or "all") and its jobs before it runs.

    Raises:
        ProtocolError: the baseline failed on every seed of a phase.
    """
    return _Course(plan, evaluate, corrected, on_phase or (lambda name, jobs: None)).run()


@dataclass
class _Course:
    """A protocol under way."""

    plan: Plan
    evaluate: Evaluate
    corrected: float
    on_phase: Callable[[str, list[Job]], None]
    records: dict[Job, Scores | Failure] = field(default_factory=dict)
    chosen: dict[str, int] = field(default_factory=dict)  # candidate of each row
    tried: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    out: dict[str, Result] = field(default_factory=dict)  # rows that left before the end
    rounds: list[Round] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def run(self) -> Outcome:
        rows = [row.id for row in self.plan.rows]
        if self.plan.protocol == "all":
            baseline, judged = self.judge("all", self.tune([BASELINE, *rows])[1:], self.plan.seeds)
        else:
            self.tune([BASELINE])
            baseline, judged = self.judge("confirm", self.race(rows), self.plan.confirm_seeds)
        winner, judged = self.crown(judged)
        absent = [Result(row.id, "not applicable", row.why_not) for row in self.plan.not_applicable]
        return Outcome(
            baseline=baseline,
            rows=tuple(sorted([*judged, *self.out.values(), *absent], key=_place)),
            winner=winner,
            tie_group=tuple(
                sorted((result.id for result in judged if result.tie_group), key=lambda id: (self.cost(id), id))
            ),
            rounds=tuple(self.rounds),
            records=self.records,
            warnings=tuple(self.warnings),
        )

    # -- phases -------------------------------------------------------------------------------------------------------

    def tune(self, rows: list[str]) -> list[str]:
        """Chooses each row's candidate by its mean validation score; a candidate that fails once is out.

        The first candidate is the published setting, which the one-standard-error rule favours.

        Returns the rows without those that failed with every setting.
        """
        known = (self.plan.baseline, *self.plan.rows)
        tuned = [row for row in known if row.id in rows and len(row.candidates) > 1]
        seeds = self.plan.tuning_seeds
        self.gather(
            "tuning",
            [Job(row.id, seed, c) for row in tuned for c in range(len(row.candidates)) for seed in seeds],
        )
        for row in tuned:
            jobs = [[Job(row.id, seed, c) for seed in seeds] for c in range(len(row.candidates))]
            failed = [next(filter(None, map(self.failure, runs)), None) for runs in jobs]
            means = [
                None if bad else float(np.mean([self.score(job, "validation") for job in runs]))
                for runs, bad in zip(jobs, failed, strict=True)
            ]
            self.tried[row.id] = tuple(means)
            finished = [c for c, mean in enumerate(means) if mean is not None]
            if finished:
                best = max(finished, key=lambda c: self.sign * (means[c] or 0.0))
                self.chosen[row.id] = best if 0 not in finished else self.settled(means, best, jobs[best])
                continue
            bad = failed[0]
            reason = bad.reason if bad else ""
            if row.id == BASELINE:
                raise ProtocolError(f"the baseline failed with every setting: {reason}")
            self.out[row.id] = self.result(row.id, "failed", f"with every setting; first: {reason}", round="tuning")
        if tuned:
            ids = tuple(row.id for row in tuned)
            self.rounds.append(Round("tuning", seeds, ids, tuple(id for id in ids if id not in self.out)))
        return [id for id in rows if id not in self.out]

    def settled(self, means: list[float | None], best: int, runs: list[Job]) -> int:
        """The one-standard-error rule (Breiman et al. 1984): the published setting stays unless `best` beats it by more
        than the standard error of its score. Otherwise noise of a small validation part would pick the strength."""
        errors = [self.records[job].get("error") for job in runs]  # type: ignore[union-attr]
        known = [error for error in errors if error is not None]
        error = math.sqrt(sum(e * e for e in known)) / len(known) if known else 0.0
        ahead = self.sign * ((means[best] or 0.0) - (means[0] or 0.0))
        return best if ahead > error else 0

    def race(self, rows: list[str]) -> list[str]:
        """Halves the rows on more and more seeds, by the mean paired difference of the validation score.

        Seeds of a row whose setting was changed in between are run again with the new one, so that every mean is of
        one setting.
        """
        used = 0
        if not self.plan.tune_after:
            rows = self.tune(rows)
        for round, fresh in enumerate(self.plan.race):
            if len(rows) <= CONFIRMED:
                break
            name, entered = f"race {round + 1}", rows
            seeds, used = self.plan.seeds[: used + fresh], used + fresh
            seeds, rows = self.train(name, rows, seeds)
            means = self.gains(rows, seeds, self.plan.race_on).mean(axis=1)
            order = [rows[i] for i in np.argsort(-means, kind="stable")]
            kept = set(order[: _left(len(entered), self.plan.race[round:])[1]])
            for place, id in enumerate(order, start=1):
                if id not in kept:
                    gains = self.gains([id], seeds, "last")[0]
                    why = f"place {place} of {len(entered)} after {len(seeds)} seeds"
                    self.out[id] = self.measured(id, gains, seeds, "dropped", why, round=name)
            rows = [id for id in rows if id in kept]
            self.rounds.append(Round(name, seeds, tuple(entered), tuple(rows)))
            if round + 1 == self.plan.tune_after:
                rows = self.tune(rows)
        return rows

    def judge(self, name: str, rows: list[str], planned: tuple[int, ...]) -> tuple[Result, list[Result]]:
        """Trains rows and baseline on the deciding seeds and compares; early stopping comes from baseline runs."""
        entered = tuple(rows)
        seeds, rows = self.train(name, rows, planned)
        self.rounds.append(Round(name, seeds, entered, tuple(rows)))
        base, stopped = (self.values(BASELINE, seeds, key) for key in ("last", "selected"))
        gains = np.vstack([self.gains(rows, seeds, "last"), self.sign * (stopped - base)])
        better, worse = signflip_maxt(gains), signflip_maxt(gains, "worse")
        beyond = gains[:-1] - gains[-1]
        p_beyond = signflip_maxt(beyond)
        results = []
        for i, id in enumerate(rows):
            word = verdict(gains[i].tolist(), better[i], worse[i], self.plan.worth, self.corrected)
            result = self.measured(id, gains[i], seeds, word, round=name, p=float(better[i]))
            stop = Comparison(float(beyond[i].mean()), self.interval(beyond[i]), float(p_beyond[i]))
            result = replace(result, beyond_early_stopping=stop)
            results.append(self.explained(result, len(gains)))
        why = "the baseline, stopped at the epoch that validation data chose"
        stopping = self.measured(EARLY_STOPPING, gains[-1], seeds, "reference", why, round=name, p=float(better[-1]))
        baseline = self.result(
            BASELINE,
            "reference",
            round=name,
            seeds=seeds,
            value=float(base.mean()),
            sd=moments(base)[2] if len(base) > 1 else None,
        )
        return baseline, [*results, stopping]

    def crown(self, results: list[Result]) -> tuple[str | None, list[Result]]:
        """Names the winner and marks what paired seeds cannot tell apart from it."""
        winners = [result for result in results if result.verdict in ("better", "worth it")]
        if not winners:
            return None, results
        best = max(winners, key=lambda result: result.gain or 0.0)
        crowned = []
        for result in results:
            if result is not best:
                behind = [a - b for a, b in zip(best.gains, result.gains, strict=True)]
                if paired_interval(behind, corrected=self.corrected)[0] > 0:
                    crowned.append(result)
                    continue
            tied = result is not best and result in winners
            why = f"cannot be told apart from {best.id}" if tied else result.why
            crowned.append(replace(result, tie_group=True, why=why, verdict="tied" if tied else result.verdict))
        return best.id, crowned

    def explained(self, result: Result, rows: int) -> Result:
        """Adds to an undecided row how many seeds would decide it."""
        if result.verdict == "equivalent":
            return replace(result, why=f"the 90 % interval lies within {self.plan.worth:g} of the baseline")
        if result.verdict != "undecided":
            return result
        have, few = len(result.seeds), f"below {DECIDABLE} seeds no winner can be declared"
        # Bonferroni stands in for the joint test, which has no simple forecast; it errs towards more seeds.
        needed = needed_seeds(result.gains, ALPHA / rows) if have > 1 else None
        if needed is None:
            return replace(result, why=few if have < DECIDABLE else "no gain on these seeds")
        needed = max(needed, have + 1, DECIDABLE)
        return replace(
            result,
            needed_seeds=needed,
            why=_join(few if have < DECIDABLE else "", f"about {needed - have} more seeds would decide"),
        )

    # -- runs and scores ----------------------------------------------------------------------------------------------

    def train(self, name: str, rows: list[str], seeds: tuple[int, ...]) -> tuple[tuple[int, ...], list[str]]:
        """Makes sure that rows and baseline have run on the seeds.

        Returns the seeds on which the baseline finished and the rows that finished on all of those.
        """
        self.gather(name, [self.job(id, seed) for seed in seeds for id in (BASELINE, *rows)])
        lost = [seed for seed in seeds if self.failure(self.job(BASELINE, seed))]
        if lost:
            bad = self.failure(self.job(BASELINE, lost[0]))
            reason = bad.reason if bad else ""
            if len(lost) == len(seeds):
                raise ProtocolError(f"the baseline failed on every seed of {name}: {reason}")
            warning = f"the baseline failed on seeds {lost}, which no row can be compared on: {reason}"
            self.warnings += [warning] if warning not in self.warnings else []
        seeds = tuple(seed for seed in seeds if seed not in lost)
        finished = []
        for id in rows:
            bad_seeds = [seed for seed in seeds if self.failure(self.job(id, seed))]
            if not bad_seeds:
                finished.append(id)
                continue
            bad = self.failure(self.job(id, bad_seeds[0]))
            why = f"{bad.reason if bad else ''} (seed {bad_seeds[0]}, {len(bad_seeds)} of {len(seeds)} failed)"
            self.out[id] = self.result(id, "failed", why, round=name, seeds=seeds)
        return seeds, finished

    def gather(self, name: str, jobs: list[Job]) -> None:
        missing = [job for job in jobs if job not in self.records]
        if not missing:
            return
        self.on_phase(name, missing)
        for job, scores in self.evaluate(missing):
            self.records[job] = _checked(scores)
        for job in missing:
            self.records.setdefault(job, Failure("the run brought back no result"))

    def job(self, row: str, seed: int) -> Job:
        return Job(row, seed, self.chosen.get(row, 0))

    def failure(self, job: Job) -> Failure | None:
        found = self.records[job]
        return found if isinstance(found, Failure) else None

    def score(self, job: Job, key: str) -> float:
        found = self.records[job]
        return math.nan if isinstance(found, Failure) else float(found[key])

    def values(self, row: str, seeds: Sequence[int], key: str) -> Array:
        return np.array([self.score(self.job(row, seed), key) for seed in seeds])

    def gains(self, rows: Sequence[str], seeds: Sequence[int], key: str) -> Array:
        """(rows, seeds): paired differences to the baseline, + is better."""
        values = np.array([self.values(id, seeds, key) for id in rows]).reshape(len(rows), len(seeds))
        gains: Array = self.sign * (values - self.values(BASELINE, seeds, key))
        return gains

    @property
    def sign(self) -> float:
        return 1.0 if self.plan.direction == "max" else -1.0

    def cost(self, id: str) -> float:
        return self.plan.costs[BASELINE if id == EARLY_STOPPING else id]

    def interval(self, diffs: Array) -> Interval | None:
        return paired_interval(diffs, corrected=self.corrected) if len(diffs) > 1 else None

    # -- results ------------------------------------------------------------------------------------------------------

    def measured(
        self, id: str, gains: Array, seeds: tuple[int, ...], verdict: str, why: str = "", **more: Any
    ) -> Result:
        source, key = (BASELINE, "selected") if id == EARLY_STOPPING else (id, "last")
        listed: list[float] = gains.tolist()
        return self.result(
            id,
            verdict,
            why,
            seeds=seeds,
            value=float(self.values(source, seeds, key).mean()),
            gains=tuple(listed),
            gain=float(gains.mean()),
            interval=self.interval(gains),
            sd=moments(gains)[2] if len(listed) > 1 else None,
            wins=sum(gain > 0 for gain in listed),
            **more,
        )

    def result(self, id: str, verdict: str, why: str = "", **more: Any) -> Result:
        return Result(
            id, verdict, why, candidate=self.chosen.get(id, 0), candidate_scores=self.tried.get(id, ()), **more
        )


def _checked(scores: Scores | Failure) -> Scores | Failure:
    """A run whose deciding scores are not finite is a failure: NaN must never win."""
    if isinstance(scores, Failure):
        return scores
    for key in ("last", "selected", "validation"):
        if not math.isfinite(scores[key]):
            return Failure(f"the {key} score is {scores[key]}")
    return scores


def _place(result: Result) -> tuple[int, int, float, str]:
    """Sorting key: judged rows by gain; then what the race dropped, latest first; failures; what does not apply."""
    group = {"dropped": 1, "failed": 2, "not applicable": 3}.get(result.verdict, 0)
    stage = -len(result.seeds) if result.verdict == "dropped" else 0
    return group, stage, -(result.gain or 0.0), result.id


def _join(*sentences: str) -> str:
    return "; ".join(filter(None, sentences))
