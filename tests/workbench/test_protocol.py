"""The rules of the protocol one by one, and the whole of it simulated under the noise of real small-data training."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from wellposed.workbench.errors import BadInput
from wellposed.workbench.outcome import Failure, Outcome, Result, verdict
from wellposed.workbench.plan import BASELINE, EARLY_STOPPING, Job, Plan, Row, make_plan
from wellposed.workbench.protocol import Evaluate, ProtocolError, run_protocol
from wellposed.workbench.statistics import paired_interval, signflip_maxt

# -- a world without torch --

SD_PAIRED, CORRELATION = 1.58, 0.8  # points of accuracy, measured between rows on small noisy data; sd of a row is 2.5


class World:
    """Scores of rows with given true effects: a part shared by all rows of a seed, and a part of each row's own.

    Validation scores have the same structure and their own draws, `validation_noise` times as large.
    """

    def __init__(self, effects: dict[str, float], seed: int = 0, validation_noise: float = 1.0) -> None:
        self.index = {id: i for i, id in enumerate([BASELINE, *effects, EARLY_STOPPING])}
        self.effects = np.array([0.0, *effects.values(), effects.get(EARLY_STOPPING, 0.0)])
        self.rng = np.random.default_rng(seed)
        self.scale = np.array([1.0, validation_noise])
        self.asked: list[Job] = []

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        own = SD_PAIRED / math.sqrt(2)
        shared = own * math.sqrt(CORRELATION / (1 - CORRELATION))
        noise = shared * self.rng.normal(size=(1, 2)) + own * self.rng.normal(size=(len(self.index), 2))
        test, validation = (80 + self.effects[:, None] + noise * self.scale).T
        return test, validation

    def __call__(self, jobs: list[Job]) -> Iterator[tuple[Job, dict[str, float]]]:
        self.asked += jobs
        drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for job in jobs:
            if job.seed not in drawn:
                drawn[job.seed] = self.draw()
            test, validation = drawn[job.seed]
            i = self.index[job.row]
            yield job, {"last": test[i], "selected": test[-1], "validation": validation[i]}


def ids(n: int) -> list[str]:
    return [f"r{i}" for i in range(n)]


def plan_of(n: int, **more: object) -> Plan:
    return make_plan([Row(id) for id in ids(n)], dict.fromkeys([BASELINE, *ids(n)], 1.0), **more)  # type: ignore[arg-type]


def exact(
    score: Callable[[Job], float | Failure], selected: float = 0.0, validation: Callable[[Job], float] | None = None
) -> Evaluate:
    """An evaluate from a formula; validation equals the test score unless given."""

    def evaluate(jobs: list[Job]) -> Iterator[tuple[Job, dict[str, float] | Failure]]:
        for job in reversed(jobs):  # any order is allowed
            s = score(job)
            if isinstance(s, Failure):
                yield job, s
            else:
                yield job, {"last": s, "selected": selected, "validation": validation(job) if validation else s}

    return evaluate


def row(outcome: Outcome, id: str) -> Result:
    return next(result for result in outcome.rows if result.id == id)


def wobble(job: Job) -> float:
    """A fixed small number in (-1, 1) for each run."""
    return math.sin(1 + 12.9898 * sum(map(ord, job.row)) + 78.233 * job.seed)


# -- the plan --


def test_everything_on_ten_seeds_when_it_fits() -> None:
    plan = plan_of(24, budget_seconds=250, jobs=1)
    assert (plan.protocol, plan.runs, plan.seconds, plan.note) == ("all", 250, 250, "")
    assert plan.seeds == tuple(range(10))
    assert plan.confirm_seeds == ()
    assert plan.summary() == "24 techniques + baseline, 10 paired seeds each: 250 runs, about 4.2 min"
    assert plan_of(24).protocol == "all"  # no budget is no limit


def test_a_race_of_144_runs_when_it_does_not() -> None:
    plan = plan_of(24, budget_seconds=249)
    assert (plan.protocol, plan.runs, plan.seconds, plan.note) == ("race", 144, 144, "")
    assert len(plan.seeds) == 8
    assert len(plan.confirm_seeds) == 10
    assert plan_of(24, budget_seconds=249, jobs=2).protocol == "all"


def test_what_judges_never_shares_a_seed_with_what_chooses() -> None:
    rows = [Row(id, ({"s": 1}, {"s": 2})) for id in ids(8)]
    costs = dict.fromkeys([BASELINE, *ids(8)], 1.0)
    plan = make_plan(rows, costs, baseline=Row(BASELINE, ({}, {"lr": 1})), budget_seconds=1)
    assert plan.protocol == "race"
    assert not set(plan.confirm_seeds) & {*plan.seeds, *plan.tuning_seeds}
    assert plan.tuning_seeds == plan.seeds[:2]  # a race chooses, as tuning does: they share runs
    assert plan.tuning_runs == round(9 * 2 * 3 / 8)  # one setting more on two seeds, for three rows of eight
    assert plan_of(8).tuning_seeds == ()
    everybody = make_plan(rows, costs)
    assert everybody.protocol == "all"
    assert not set(everybody.seeds) & set(everybody.tuning_seeds)
    assert everybody.tuning_runs == 8 * 2 * 2
    assert plan.setting(Job("r3", 0, 1)) == {"s": 2}


def test_a_budget_too_small_even_for_the_race_is_said_and_goes_on_unless_strict() -> None:
    plan = plan_of(24, budget_seconds=60)
    assert plan.protocol == "race"
    assert "the race needs about 1.5 minutes and the budget leaves 1.0" in plan.note
    with pytest.raises(BadInput, match=r"1\.5 minutes"):
        plan_of(24, budget_seconds=60, strict=True)


def test_the_users_number_of_seeds_is_obeyed() -> None:
    plan = plan_of(24, budget_seconds=60, seeds=12)
    assert (plan.protocol, plan.runs) == ("all", 300)
    assert "this plan needs about 5.0 minutes" in plan.note
    assert "below 5 seeds" in plan_of(2, seeds=4).note


def test_few_rows_are_never_raced() -> None:
    assert plan_of(3, budget_seconds=1).protocol == "all"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seeds": 0}, "seeds must be between"),
        ({"seeds": -3}, "seeds must be between"),
        ({"budget_seconds": 0.0}, "positive time"),
        ({"budget_seconds": math.nan}, "positive time"),
        ({"jobs": 0}, "at a time"),
        ({"worth": -1.0}, "worth having"),
        ({"first_seed": -1}, "counted from 0"),
        ({"baseline": Row("other")}, "must be 'baseline'"),
    ],
)
def test_bad_numbers_are_one_sentence(more: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan_of(2, **more)


def test_bad_rows_are_refused() -> None:
    costs = dict.fromkeys([BASELINE, "a", "b"], 1.0)
    with pytest.raises(BadInput, match="already taken"):
        make_plan([Row("a"), Row("a")], costs)
    with pytest.raises(BadInput, match="already taken"):
        make_plan([Row(EARLY_STOPPING)], costs)
    with pytest.raises(BadInput, match="seconds per run of 'c'"):
        make_plan([Row("c")], costs)
    with pytest.raises(BadInput, match="needs two views"):
        make_plan([Row("a", why_not="needs two views")], costs)


# -- the words --

UP = [2.0, 2.5, 1.5, 2.2, 1.8, 2.1]


@pytest.mark.parametrize(
    ("diffs", "better", "worse", "worth", "word"),
    [
        (UP, 0.02, 1.0, None, "better"),
        (UP, 0.02, 1.0, 0.5, "worth it"),
        (UP, 0.02, 1.0, 2.0, "better"),  # the lower bound is not above 2
        (UP, 0.02, 1.0, 5.0, "equivalent"),  # certain, and not worth having
        (UP, 0.06, 1.0, None, "undecided"),  # the interval alone is not enough
        ([5.0, -1, 5, -1, 5, -1], 0.04, 1.0, None, "undecided"),  # nor the p-value alone
        (UP[:4], 0.02, 1.0, 5.0, "undecided"),  # four seeds never decide
        ([-d for d in UP], 1.0, 0.02, None, "worse"),
        ([-d for d in UP], 1.0, 0.06, None, "undecided"),
        ([0.0] * 6, 1.0, 1.0, None, "undecided"),
        ([0.0] * 6, 1.0, 1.0, 0.1, "equivalent"),
    ],
)
def test_verdict(diffs: list[float], better: float, worse: float, worth: float | None, word: str) -> None:
    assert verdict(diffs, better, worse, worth) == word


def test_correction_for_overlapping_training_parts_widens_the_verdict() -> None:
    assert verdict(UP, 0.02, 1.0) == "better"
    assert verdict(UP, 0.02, 1.0, corrected=10.0) == "undecided"


# -- the course of a comparison --


def test_numbers_of_a_row_are_those_of_the_statistics() -> None:
    world = World({"r0": 3.0, "r1": 0.0, "r2": -3.0})
    outcome = run_protocol(plan_of(3), world)
    result = row(outcome, "r0")
    last = {(job.row, job.seed): s["last"] for job, s in outcome.records.items()}  # type: ignore[index]
    gains = {id: [last[id, s] - last[BASELINE, s] for s in range(10)] for id in ids(3)}
    stopped = [outcome.records[Job(BASELINE, s)]["selected"] - last[BASELINE, s] for s in range(10)]  # type: ignore[index]
    family = np.array([*gains.values(), stopped])
    assert result.gains == pytest.approx(gains["r0"])
    assert result.gain == pytest.approx(np.mean(gains["r0"]))
    assert result.sd == pytest.approx(np.std(gains["r0"], ddof=1))
    assert result.interval == pytest.approx(paired_interval(gains["r0"]))
    assert result.p == signflip_maxt(family)[0]
    assert result.wins == sum(g > 0 for g in gains["r0"])
    assert result.value == pytest.approx(np.mean([last["r0", s] for s in range(10)]))
    assert result.beyond_early_stopping is not None
    beyond = np.array([gains[id] for id in ids(3)]) - stopped
    assert result.beyond_early_stopping.gain == pytest.approx(beyond[0].mean())
    assert result.beyond_early_stopping.p == signflip_maxt(beyond)[0]
    assert [r.verdict for r in outcome.rows if r.id in ("r0", "r2")] == ["better", "worse"]
    assert outcome.winner == "r0"
    assert [s["last"] for s in outcome.scores(result)] == [last["r0", s] for s in range(10)]


def test_early_stopping_is_a_reference_row_and_costs_no_run() -> None:
    outcome = run_protocol(plan_of(2), exact(lambda job: wobble(job), selected=5.0))
    stop = row(outcome, EARLY_STOPPING)
    assert stop.verdict == "reference"
    assert stop.gain == pytest.approx(5.0 - (outcome.baseline.value or 0.0))
    assert stop.value == 5.0
    assert stop.p is not None
    assert stop.p < 0.05
    assert outcome.winner is None
    assert {job.row for job in outcome.records} == {BASELINE, "r0", "r1"}


def test_a_metric_to_be_minimised_has_positive_gains_when_it_falls() -> None:
    outcome = run_protocol(
        plan_of(2, direction="min"),
        exact(lambda job: 5 + 0.1 * wobble(job) - (2 if job.row == "r1" else 0), selected=5),
    )
    assert outcome.winner == "r1"
    assert row(outcome, "r1").gain == pytest.approx(2, abs=0.2)
    assert row(outcome, "r1").value == pytest.approx(3, abs=0.2)


def test_tie_group_is_listed_by_cost_and_keeps_the_undecided() -> None:
    effects = {"r0": 6.0, "r1": 5.9, "r2": 1.5, BASELINE: 0.0}
    costs = {BASELINE: 1.0, "r0": 3.0, "r1": 2.0, "r2": 1.0}
    plan = make_plan([Row(id) for id in ids(3)], costs)
    outcome = run_protocol(plan, exact(lambda job: effects[job.row] + wobble(job)))
    assert outcome.winner in ("r0", "r1")
    other = {"r0": "r1", "r1": "r0"}[outcome.winner]
    assert outcome.tie_group == ("r1", "r0")
    assert row(outcome, outcome.winner).verdict == "better"
    assert row(outcome, other).verdict == "tied"
    assert row(outcome, other).why == f"cannot be told apart from {outcome.winner}"
    assert not row(outcome, "r2").tie_group

    def noisy(job: Job) -> float:
        return {"r0": 6.0, BASELINE: 0.0}.get(job.row, 5.0) + (20 if job.row == "r2" else 0.5) * wobble(job)

    unsure = row(run_protocol(plan, exact(noisy)), "r2")
    assert (unsure.verdict, unsure.tie_group) == ("undecided", True)
    assert unsure.needed_seeds is not None
    assert f"about {unsure.needed_seeds - 10} more seeds" in unsure.why


def test_below_five_seeds_there_is_no_winner_however_clear() -> None:
    outcome = run_protocol(plan_of(2, seeds=4), exact(lambda job: 50.0 * (job.row == "r0") + 0.1 * wobble(job)))
    assert outcome.winner is None
    assert row(outcome, "r0").verdict == "undecided"
    assert row(outcome, "r0").why == "below 5 seeds no winner can be declared; about 1 more seeds would decide"
    assert run_protocol(plan_of(2, seeds=5), exact(lambda job: 50.0 * (job.row == "r0"))).winner == "r0"


def test_one_seed_has_gains_and_no_interval() -> None:
    result = row(run_protocol(plan_of(2, seeds=1), exact(lambda job: float(job.row == "r0"))), "r0")
    assert (result.gain, result.interval, result.sd, result.needed_seeds) == (1.0, None, None, None)


def test_failures_are_rows_with_reasons_in_all_and_in_race() -> None:
    def score(job: Job) -> float | Failure:
        if job.row == "r1" and job.seed % 1000 == 1:
            return Failure("the loss became NaN in step 41", "Traceback ...")
        return math.nan if job.row == "r2" else wobble(job)

    for budget in (None, 74.0):  # seconds: all rows on 10 seeds need 100, the race 74
        outcome = run_protocol(plan_of(9, budget_seconds=budget), exact(score))
        crashed, nan = row(outcome, "r1"), row(outcome, "r2")
        assert crashed.verdict == nan.verdict == "failed"
        assert crashed.why.startswith("the loss became NaN in step 41 (seed")
        assert "the last score is nan" in nan.why
        assert nan.gain is nan.p is None
        assert crashed.round == ("all" if budget is None else "race 1")
        assert [r.verdict for r in outcome.rows[-2:]] == ["failed", "failed"]
        assert len(outcome.rows) == 10


def test_a_failure_in_confirmation_is_seen() -> None:
    plan = plan_of(9, budget_seconds=1)

    def score(job: Job) -> float | Failure:
        if job.seed == plan.confirm_seeds[3] and job.row == "r4":
            return Failure("out of memory")
        return 10.0 * (job.row == "r4") + wobble(job)

    result = row(run_protocol(plan, exact(score)), "r4")
    assert (result.verdict, result.round) == ("failed", "confirm")


def test_seeds_on_which_the_baseline_fails_count_for_nobody() -> None:
    def score(job: Job) -> float | Failure:
        return Failure("NaN") if job.row == BASELINE and job.seed in (2, 5) else wobble(job)

    outcome = run_protocol(plan_of(2), exact(score))
    assert row(outcome, "r0").seeds == outcome.baseline.seeds == (0, 1, 3, 4, 6, 7, 8, 9)
    assert len(outcome.warnings) == 1
    assert "[2, 5]" in outcome.warnings[0]
    with pytest.raises(ProtocolError, match="failed on every seed of all: NaN"):
        run_protocol(plan_of(2), exact(lambda job: Failure("NaN") if job.row == BASELINE else 0.0))


def test_everything_failing_is_still_a_table() -> None:
    for budget in (None, 74.0):  # seconds: all rows on 10 seeds need 100, the race 74
        outcome = run_protocol(
            plan_of(9, budget_seconds=budget), exact(lambda job: 1.0 if job.row == BASELINE else Failure("no"))
        )
        assert [r.verdict for r in outcome.rows] == ["reference"] + ["failed"] * 9


def test_a_run_that_never_comes_back_is_a_failure() -> None:
    outcome = run_protocol(plan_of(2), lambda jobs: (x for x in exact(wobble)(jobs) if x[0].row != "r1"))
    assert row(outcome, "r1").why.startswith("the run brought back no result")


def test_what_does_not_apply_is_carried_and_never_run() -> None:
    rows = [Row("a"), Row("b", why_not="needs two views")]
    outcome = run_protocol(make_plan(rows, {BASELINE: 1.0, "a": 1.0}), exact(wobble))
    assert outcome.rows[-1] == Result("b", "not applicable", "needs two views")
    assert {job.row for job in outcome.records} == {BASELINE, "a"}


# -- the race --


@pytest.mark.parametrize(
    ("seconds", "asks", "seeds", "kept"),
    [
        (144, [50, 26, 28, 40], [2, 4, 8, 10], [12, 6, 3, 3]),
        (1, [25, 13, 14, 40], [1, 2, 4, 10], [12, 6, 3, 3]),
    ],
    ids=["thorough", "quick"],
)
def test_the_race_halves_by_validation_and_confirms_on_fresh_seeds(
    seconds: float, asks: list[int], seeds: list[int], kept: list[int]
) -> None:
    plan = plan_of(24, budget_seconds=seconds)

    def strength(job: Job) -> float:
        return 24.0 - int(job.row[1:]) if job.row != BASELINE else 0.0

    # On test data the order is reversed: had the race looked at it, it would have kept the others.
    asked: dict[str, list[Job]] = {}
    outcome = run_protocol(
        plan,
        exact(lambda job: -strength(job) + 0.1 * wobble(job), validation=strength),
        on_phase=lambda name, jobs: asked.setdefault(name, list(jobs)),
    )
    assert [len(jobs) for jobs in asked.values()] == asks
    assert sum(map(len, asked.values())) == plan.runs == len(outcome.records)
    assert [round.kept for round in outcome.rounds] == [tuple(ids(n)) for n in kept]
    assert [len(round.seeds) for round in outcome.rounds] == seeds
    confirmed = [r for r in outcome.rows if r.round == "confirm"]
    assert {r.id for r in confirmed} == {*ids(3), EARLY_STOPPING}
    assert all(r.seeds == plan.confirm_seeds for r in confirmed)
    assert outcome.baseline.seeds == plan.confirm_seeds
    dropped = [r for r in outcome.rows if r.verdict == "dropped"]
    assert [r.round for r in dropped] == ["race 3"] * 3 + ["race 2"] * 6 + ["race 1"] * 12
    assert row(outcome, "r23").why == f"place 24 of 24 after {seeds[0]} seeds"
    assert all(r.p is None and len(r.gains) == len(r.seeds) for r in dropped)


@pytest.mark.parametrize("n", [4, 5, 6, 7, 13, 40])
def test_planned_runs_are_the_runs_made(n: int) -> None:
    plan = plan_of(n, budget_seconds=1)
    world = World(dict.fromkeys(ids(n), 0.0))
    outcome = run_protocol(plan, world)
    assert plan.runs == len(world.asked) == len(outcome.records)
    assert len([r for r in outcome.rows if r.round in ("confirm", "all")]) == 4 if plan.protocol == "race" else n + 1


# -- tuning --


def tuned(n: int = 2) -> Plan:
    settings = tuple({"s": s} for s in (1, 2, 3))
    costs = dict.fromkeys([BASELINE, *ids(n)], 1.0)
    return make_plan([Row("r0", settings), *map(Row, ids(n)[1:])], costs, baseline=Row(BASELINE, settings))


def test_validation_and_never_test_chooses_the_setting() -> None:
    plan = tuned()
    outcome = run_protocol(
        plan,
        exact(lambda job: -float(job.candidate), validation=lambda job: float(job.candidate != 1) + job.candidate / 9),
    )
    assert row(outcome, "r0").candidate == outcome.baseline.candidate == 2
    assert row(outcome, "r0").candidate_scores == pytest.approx((1.0, 1 / 9, 11 / 9))
    assert row(outcome, "r1").candidate_scores == ()
    assert {job.candidate for job in outcome.records if job.row == "r0" and job.seed in plan.seeds} == {2}
    assert plan.tuning_runs == sum(job.seed in plan.tuning_seeds for job in outcome.records) == 12


QUICK, THOROUGH = (1, 1, 2, 4), (2, 2, 4)


@pytest.mark.parametrize(
    ("seconds", "race", "after"),
    [(144, THOROUGH, 0), (108, QUICK, 0), (92, QUICK, 1), (84, QUICK, 2), (82, QUICK, 3), (1, QUICK, 3)],
)
def test_settings_are_chosen_as_early_as_the_budget_allows(seconds: float, race: tuple[int, ...], after: int) -> None:
    """16 rows race in 112 runs (32, 16 and 16 of the rows, 30 to confirm, 18 of the baseline), or quickly in 76 (16, 8
    and 8, 30 and 14); two more settings are 32 runs for all, 16 for half of the rows, 8 for a quarter, 6 for three."""
    plan = race_with_settings(seconds)
    assert (plan.race, plan.tune_after, bool(plan.note)) == (race, after, seconds == 1)
    assert plan.tuning_runs == (32, 16, 8, 6)[after]
    assert plan.runs == (112 if race == THOROUGH else 76) + plan.tuning_runs


def test_where_no_race_is_shorter_the_plan_speaks_of_none() -> None:
    settings = ({"s": 1}, {"s": 2})
    costs = {BASELINE: 1000.0, **dict.fromkeys(ids(4), 1.0)}  # a race asks more of the baseline than ten seeds for all
    plan = make_plan([Row(id, settings) for id in ids(4)], costs, budget_seconds=1)
    assert (plan.protocol, plan.race, plan.tune_after, plan.over_budget) == ("all", (2, 2, 4), 0, True)
    assert "round" not in plan.summary()


def race_with_settings(seconds: float) -> Plan:
    n, settings = 16, tuple({"s": s} for s in (1, 2, 3))
    costs = dict.fromkeys([BASELINE, *ids(n)], 1.0)
    return make_plan([Row(id, settings) for id in ids(n)], costs, budget_seconds=seconds, tuning_seeds=1)


def test_a_race_tunes_those_that_survive_its_first_round() -> None:
    n, plan = 16, race_with_settings(92)
    places = {id: float(i) for i, id in enumerate([BASELINE, *ids(n)])}
    outcome = run_protocol(plan, exact(lambda job: places[job.row] + 20 * (job.candidate == 2)))
    entered = [(r.name, len(r.rows)) for r in outcome.rounds]
    assert entered == [("race 1", 16), ("tuning", 8), ("race 2", 8), ("race 3", 4), ("confirm", 3)]
    tuned = {job.row for job in outcome.records if job.seed in plan.tuning_seeds and job.candidate}
    assert tuned == set(ids(n)[8:])
    assert {job.candidate for job in outcome.records if job.row == "r0"} == {0}
    new = {job.seed for job in outcome.records if job.row == "r15" and job.candidate == 2}
    assert new == {*plan.seeds[:4], *plan.confirm_seeds}  # the first round's seed, too; three rounds leave three rows
    assert row(outcome, "r15").candidate == 2


def test_a_setting_that_fails_is_not_chosen_and_a_row_whose_settings_all_fail_has_failed() -> None:
    def score(job: Job) -> float | Failure:
        return Failure("diverged") if job.row == "r0" and job.candidate == 2 else float(job.candidate)

    outcome = run_protocol(tuned(), exact(score))
    assert row(outcome, "r0").candidate == 1
    assert row(outcome, "r0").candidate_scores == (0.0, 1.0, None)
    failed = row(run_protocol(tuned(), exact(lambda job: Failure("bad") if job.row == "r0" else 0.0)), "r0")
    assert (failed.verdict, failed.round, failed.why) == ("failed", "tuning", "with every setting; first: bad")
    with pytest.raises(ProtocolError, match="every setting: bad"):
        run_protocol(tuned(), exact(lambda job: Failure("bad") if job.row == BASELINE else 0.0))


# -- the whole protocol, simulated --


def winners(effects: dict[str, float], race: bool, repetitions: int, seed: int) -> list[str | None]:
    plan = plan_of(len(effects), budget_seconds=200 if race else None)
    assert plan.protocol == ("race" if race else "all")
    world = World(effects, seed)
    return [run_protocol(plan, world).winner for _ in range(repetitions)]


def upper(count: int, of: int) -> float:
    """Exact one-sided 95 % upper confidence bound of a rate: what the Monte-Carlo error leaves possible."""
    return float(binomtest(count, of).proportion_ci(0.9, "exact").high)


@pytest.mark.slow
@pytest.mark.parametrize(("race", "repetitions"), [(False, 5000), (True, 2500)])
def test_when_nothing_works_a_false_winner_is_named_in_at_most_5_5_percent(race: bool, repetitions: int) -> None:
    """Monte-Carlo error (one sd) at a rate of .05: .003 with 5000 repetitions, .0044 with 2500."""
    named = winners(dict.fromkeys(ids(24), 0.0), race, repetitions, seed=20_26)
    count = sum(winner is not None for winner in named)
    assert upper(count, repetitions) <= 0.055
    assert count / repetitions > 0.02  # and the test is not won by never naming anybody


@pytest.mark.slow
def test_two_points_among_24_rows_are_found_by_the_race_in_at_least_85_percent() -> None:
    """Monte-Carlo error (one sd) at .88: .0073 with 2000 repetitions."""
    named = winners({"r0": 2.0, **dict.fromkeys(ids(24)[1:], 0.0)}, True, 2000, seed=11)
    found = named.count("r0")
    assert 1 - upper(len(named) - found, len(named)) >= 0.85


@pytest.mark.parametrize(("ahead", "error", "chosen"), [(2.0, 3.0, 0), (4.0, 3.0, 1), (4.0, None, 1), (-1.0, 3.0, 0)])
def test_the_published_setting_stays_within_a_standard_error(ahead: float, error: float | None, chosen: int) -> None:
    """Noise of a small validation part must not pick the strength (one-standard-error rule)."""

    def evaluate(jobs: list[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
        for job in jobs:
            score = 50.0 + ahead * (job.candidate == 1)
            yield job, {"last": score, "selected": score, "validation": score, "error": error}

    plan = make_plan([Row("a", ({"s": 1}, {"s": 2}))], dict.fromkeys([BASELINE, "a"], 1.0), tuning_seeds=1)
    outcome = run_protocol(plan, evaluate)
    assert next(r for r in outcome.rows if r.id == "a").candidate == chosen
