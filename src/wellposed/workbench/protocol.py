"""The protocol of `wellposed compare`: a plan carried out, and what may be said afterwards.

Nothing here trains. `run_protocol` asks an injected `evaluate` for runs, phase by phase, and judges their scores. So
the protocol can be simulated (and is, in the tests: false winners when nothing works, power when something does).

Rules: every seed is shared by all rows (split, initialisation, batches). Gains of a race are quoted from the seeds of
its confirmation, which removes the winner's curse. Validation scores choose candidate settings and the rows that stay
in the race; test scores only judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .outcome import Comparison, Failure, Outcome, Result, Round, Scores, verdict
from .plan import BASELINE, CONFIRMED, DECIDABLE, EARLY_STOPPING, Job, Plan, rows_left
from .statistics import ALPHA, Array, Interval, moments, needed_seeds, paired_interval, signflip_maxt

Evaluate = Callable[[list[Job]], Iterable[tuple[Job, Scores | Failure]]]


class ProtocolError(RuntimeError):
    """The comparison has no reference: the baseline itself failed on every seed."""


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
            kept = set(order[: rows_left(len(entered), self.plan.race[round:])[1]])
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
        more = f"about {needed - have} more seeds would decide"
        return replace(
            result,
            needed_seeds=needed,
            why=f"{few}; {more}" if have < DECIDABLE else more,
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
