"""The rule of the verdict on synthetic effects, the committed evidence, and running a claim again."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wellposed.core.registry import parts_of
from wellposed.papers import evidence, papers
from wellposed.papers.arenas import Arena, digits, fit, mixture, mlp, quality
from wellposed.papers.claim import LOOKS, Claim, ClaimError, check, differences, judge, looks
from wellposed.papers.fingerprint import SOURCE, fingerprint, reached
from wellposed.papers.mutation import Mutation, fixed
from wellposed.smoothness.sam import SAM

CLAIMED = evidence.claimed()


# ---- the rule
def decide(gains: np.ndarray, margin: float) -> str:
    """The verdict on 20 paired differences, as ``check`` reaches it."""
    for look in looks(len(gains)):
        if verdict := judge(gains[:look].tolist(), margin, last=look == len(gains)):
            return verdict
    raise AssertionError("the last look decides")


def rates(effect: float, margin: float = 0.5, repetitions: int = 5000) -> dict[str, float]:
    """How often each verdict falls where the true effect is ``effect`` standard deviations of a paired difference."""
    drawn = np.random.default_rng(0).normal(effect, 1.0, (repetitions, 20))
    verdicts = [decide(gains, margin) for gains in drawn]
    return {v: verdicts.count(v) / repetitions for v in ("PASS", "FAIL", "NULL")}


def test_no_effect_passes_in_at_most_one_case_of_twenty() -> None:
    assert 0.02 < rates(0.0)["PASS"] <= 0.05


def test_an_effect_of_one_and_a_half_standard_deviations_passes() -> None:
    assert rates(1.5, repetitions=2000)["PASS"] > 0.99


def test_an_effect_the_other_way_fails() -> None:
    assert rates(-1.0, repetitions=2000)["FAIL"] > 0.99


def test_a_true_effect_as_large_as_the_margin_seldom_fails() -> None:
    assert rates(0.5, repetitions=2000)["FAIL"] < 0.06


@pytest.mark.parametrize(
    ("gains", "last", "verdict"),
    [
        ([3.0, 3.1, 2.9, 3.0, 3.0], False, "PASS"),
        ([0.0] * 5, False, "FAIL"),  # a technique that does nothing
        ([-3.0, -3.1, -2.9, -3.0, -3.0], False, "FAIL"),  # its sign turned round
        ([0.20, 0.21, 0.19, 0.20, 0.20], False, "FAIL"),  # real, but surely below the margin of 1
        ([4.0, -3.0, 5.0, -1.0, 2.0], False, None),
        ([4.0, -3.0, 5.0, -1.0, 2.0], True, "NULL"),
    ],
)
def test_verdict_of_one_look(gains: list[float], last: bool, verdict: str | None) -> None:
    assert judge(gains, 1.0, last) == verdict


@pytest.mark.parametrize(
    ("seeds", "expected"), [(5, [5]), (7, [5, 7]), (10, [5, 10]), (20, [5, 10, 20]), (40, [5, 10, 40])]
)
def test_looks_at_most_three_times(seeds: int, expected: list[int]) -> None:
    assert looks(seeds) == expected


# ---- checking one claim
def claim(run: Callable[[int], Mapping[str, Mapping[str, Any]]], **changed: Any) -> Claim:
    fields = {
        "margin": 1.0,
        "mutation": Mutation("radius 0", "wellposed.smoothness.sam:SAM", fixed(rho=0.0)),
        **changed,
    }
    return Claim(paper="sam", statement="It helps.", arena="none", quantity="accuracy", run=run, **fields)


def noisy(effect: float) -> Callable[[int], Mapping[str, Mapping[str, float]]]:
    """Both arms share most of their noise, as paired arms do."""

    def run(seed: int) -> Mapping[str, Mapping[str, float]]:
        shared, one, two = np.random.default_rng(seed).normal(0, 1, 3)
        return {"with": {"accuracy": 5 * shared + one + effect}, "without": {"accuracy": 5 * shared + two}}

    return run


def test_a_large_effect_stops_at_the_first_look() -> None:
    outcome = check(claim(noisy(10.0)))
    assert (outcome.verdict, outcome.seeds) == ("PASS", tuple(range(100, 105)))
    assert outcome.estimate == pytest.approx(10, abs=2)
    assert outcome.interval is not None
    assert outcome.interval[0] < outcome.estimate < outcome.interval[1]


def test_lower_turns_the_sign() -> None:
    assert check(claim(noisy(-10.0), direction="lower")).verdict == "PASS"
    assert check(claim(noisy(-10.0), direction="higher")).verdict == "FAIL"


def test_undecided_after_twenty_seeds_is_null() -> None:
    def run(seed: int) -> Mapping[str, Mapping[str, float]]:
        return {"with": {"accuracy": 8.0 if seed % 2 else -6.0}, "without": {"accuracy": 0.0}}

    outcome = check(claim(run))
    assert (outcome.verdict, len(outcome.seeds)) == ("NULL", 20)


def risen(curve: Mapping[str, Any]) -> float:
    """A gain: last minus first."""
    return float(curve["error"][-1] - curve["error"][0])


def rising(effect: float) -> Callable[[int], Mapping[str, Mapping[str, Any]]]:
    """A curve over three numbers of rows that rises by ``effect`` and noise of sd 1."""

    def run(seed: int) -> Mapping[str, Mapping[str, Any]]:
        shared, noise = np.random.default_rng(seed).normal(0, 1, 2)
        return {"curve": {"rows": [1, 2, 3], "error": [shared, shared + 1, shared + effect + noise]}}

    return run


def test_a_curve_claim_judges_a_number_drawn_from_each_seeds_curve() -> None:
    outcome = check(claim(rising(10.0), kind="curve", gain=risen))
    assert (outcome.verdict, outcome.seeds) == ("PASS", tuple(range(100, 105)))
    assert outcome.gains == pytest.approx([c[-1] - c[0] for c in outcome.arms["curve"]["error"]])
    assert outcome.arms["curve"]["rows"] == [[1, 2, 3]] * 5
    assert check(claim(rising(-10.0), kind="curve", gain=risen)).verdict == "FAIL"


def test_the_rule_on_curves_is_the_rule_on_pairs() -> None:
    """No effect passes in at most one case of twenty; one of one and a half standard deviations nearly always."""
    found = {
        effect: [
            check(claim(rising(effect), kind="curve", gain=risen, seeds=tuple(range(20 * k, 20 * k + 20)))).verdict
            for k in range(400)
        ].count("PASS")
        / 400
        for effect in (0.0, 1.5)
    }
    assert found[0.0] <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5  # two standard errors of the count
    assert found[1.5] > 0.98


def test_cost_claims_take_the_worst_ratio() -> None:
    def run(seed: int) -> Mapping[str, Mapping[str, Any]]:
        return {"with": {"passes": 1, "numbers": 30 if seed == 104 else 20}, "without": {"passes": 2, "numbers": 40}}

    outcome = check(claim(run, kind="cost", tolerance=0.75))
    assert (outcome.verdict, outcome.estimate, outcome.interval) == ("PASS", 0.75, None)
    assert check(claim(run, kind="cost", tolerance=0.7)).verdict == "FAIL"


def test_the_record_of_a_curve_keeps_seeds_mean_and_gains() -> None:
    declared = claim(rising(10.0), kind="curve", gain=risen)
    outcome = check(declared)
    found = evidence.record(declared, outcome)
    assert (found["curve"]["swept"], found["curve"]["x"]) == ("rows", [1, 2, 3])
    each = np.array(outcome.arms["curve"]["error"])
    assert found["curve"]["mean"]["error"] == pytest.approx(each.mean(0), rel=1e-5)
    assert np.array(found["curve"]["seeds"]["error"]) == pytest.approx(each, rel=1e-5)
    assert found["differences"] == pytest.approx(outcome.gains, rel=1e-5)
    assert evidence.in_words(found).startswith("PASS: accuracy 9.")
    assert "margin 1; 5 seeds" in evidence.in_words(found)


def test_the_record_of_a_cost_keeps_counts_and_ratios() -> None:
    declared = claim(lambda seed: {"with": {"passes": 1}, "without": {"passes": 2}}, kind="cost", tolerance=0.6)
    found = evidence.record(declared, check(declared))
    assert (found["arms"]["without"], found["ratios"]) == ({"passes": [2] * 5}, {"passes": [0.5] * 5})
    assert "at most 0.5 times as much, tolerance 0.6" in evidence.in_words(found)


def test_exact_claims_compare_every_error_with_the_tolerance() -> None:
    def run(seed: int) -> Mapping[str, Mapping[str, float]]:
        return {"errors": {"one": 1e-9, "two": 2e-6 if seed == 104 else 0.0}}

    assert check(claim(run, kind="exact", tolerance=1e-5)).verdict == "PASS"
    assert check(claim(run, kind="exact", tolerance=1e-6)).verdict == "FAIL"


@pytest.mark.parametrize(
    ("kind", "measured"),
    [
        ("paired", {"with": {"accuracy": float("nan")}, "without": {"accuracy": 1.0}}),
        ("paired", {"with": {"accuracy": 1.0}}),
        ("paired", {"with": {"nll": 1.0}, "without": {"nll": 1.0}}),
        ("exact", {"errors": {}}),
        ("exact", {"errors": {"one": float("inf")}}),
        ("curve", {"curve": {"rows": [1, 2]}}),
        ("curve", {"curve": {"rows": [1, 2], "error": [1, 2, 3]}}),
        ("curve", {"curve": {"rows": [1, 2], "error": [1, float("nan")]}}),
        ("cost", {"with": {"passes": 1}, "without": {"steps": 1}}),
        ("cost", {"with": {"passes": 1}, "without": {"passes": 0}}),
    ],
)
def test_what_cannot_be_judged_is_an_error_and_no_verdict(kind: str, measured: Mapping[str, Any]) -> None:
    fields = {"gain": risen} if kind == "curve" else {"tolerance": 1.0}
    with pytest.raises(ClaimError, match="sam"):
        check(claim(lambda seed: measured, kind=kind, **fields))


def test_a_sweep_is_the_same_for_every_seed() -> None:
    with pytest.raises(ClaimError, match="seed 101: another sweep"):
        check(claim(lambda seed: {"curve": {"rows": [1, seed], "error": [1, 2]}}, kind="curve", gain=risen))


def test_a_claim_needs_a_margin_and_five_seeds() -> None:
    with pytest.raises(ValueError, match="margin above 0"):
        claim(noisy(0), margin=0.0)
    with pytest.raises(ValueError, match="tolerance above 0"):
        claim(noisy(0), kind="exact")
    with pytest.raises(ValueError, match="needs a gain"):
        claim(rising(0), kind="curve")
    with pytest.raises(ValueError, match="needs a gain"):
        claim(noisy(0), gain=risen)
    with pytest.raises(ValueError, match="at least 5 different seeds"):
        claim(noisy(0), seeds=(1, 2, 3, 4, 4))


# ---- arenas
def test_wrong_labels_are_wrong_and_as_many_as_asked_for() -> None:
    sample = digits(3, 1200, wrong=0.4)
    share = float((sample.y != sample.clean).float().mean())
    assert 0.35 < share < 0.45
    assert torch.equal(digits(3, 1200).y, sample.clean)
    assert len(sample.x_test) == 597


def test_training_is_a_function_of_the_seed() -> None:
    sample = mixture(1, rows=64)

    def weights(seed: int) -> torch.Tensor:
        model = fit(mlp(seed, 20, 8, 10), sample, seed=seed, epochs=2, lr=1e-2)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.manual_seed(5)
    one = weights(1)
    torch.manual_seed(6)
    assert torch.equal(one, weights(1))
    assert not torch.equal(one, weights(2))


def test_arms_differ_in_the_technique_alone() -> None:
    """With the technique turned off both arms are one net, bit for bit, so nothing is left to pass a claim."""
    arena = Arena("", lambda seed: mixture(seed, rows=64), (8,), epochs=2, lr=1e-2)
    found = arena.pair(3, SAM(rho=0.0), quality)
    assert found["with"] == found["without"]
    assert arena.pair(3, SAM(rho=0.5), quality)["with"] != found["without"]


def test_the_test_set_is_never_trained_on() -> None:
    sample = digits(0, 1200)
    rows = {tuple(r) for r in sample.x.tolist()}
    both = sum(tuple(r) in rows for r in sample.x_test.tolist())
    assert both == 0


# ---- declarations and committed evidence
def test_every_paper_that_a_technique_cites_has_a_claim() -> None:
    assert {id for id in papers() if parts_of(id)} == set(CLAIMED)
    assert len(CLAIMED) >= 21


@pytest.mark.parametrize("id", CLAIMED)
def test_claim_is_about_its_paper(id: str) -> None:
    declared = evidence.claim_of(id)
    assert declared.paper == id
    assert id in papers()
    modules = {module for module, _ in reached(declared.run.__module__)}
    assert modules & {part.__module__ for part in parts_of(id)}, "it never uses the technique"


@pytest.mark.parametrize("id", CLAIMED)
def test_every_claim_says_how_its_technique_is_damaged(id: str) -> None:
    """What is damaged is code that the claim uses; `wellposed reproduce` has seen that the PASS is then lost."""
    declared = evidence.claim_of(id)
    module = declared.mutation.target.partition(":")[0]
    assert module in {where for where, _ in reached(declared.run.__module__)}
    with declared.mutation.applied():
        pass
    found = evidence.read(id)
    assert found is not None
    assert found["mutation"]["words"] == declared.mutation.words
    assert found["verdict"] != "PASS" or found["mutation"]["verdict"] in ("FAIL", "NULL", "ERROR")


@pytest.mark.parametrize("id", CLAIMED)
def test_committed_evidence_is_from_this_code(id: str) -> None:
    found, declared = evidence.read(id), evidence.claim_of(id)
    assert found is not None, f"run `wellposed reproduce {id}`"
    assert not evidence.is_stale(found), f"the code has changed: run `wellposed reproduce {id}`"
    for name in ("statement", "arena", "kind", "quantity"):
        assert found[name] == getattr(declared, name)
    assert tuple(found["seeds"]) == declared.seeds[: len(found["seeds"])]
    assert len(found["seeds"]) in LOOKS
    assert found["verdict"] in evidence.in_words(found)
    if not declared.sampled:
        worst = found["arms"]["errors"] if declared.kind == "exact" else found["ratios"]
        largest = max(max(values) for values in worst.values())
        assert found["estimate"] == largest
        assert found["verdict"] == ("PASS" if largest <= declared.tolerance else "FAIL")
        return
    gains = found["differences"]
    if declared.kind == "paired":
        assert found["direction"] == declared.direction
        # six digits were kept of everything: each arm is off by 5e-6 of itself, their difference by twice that, and its
        # own rounding adds 5e-6 of at most twice an arm
        rounding = 2e-5 * max(abs(v) for arm in found["arms"].values() for v in arm[declared.quantity])
        kept = differences(found["arms"], declared.quantity, declared.direction)
        assert gains == pytest.approx(kept, rel=0, abs=rounding)
    else:
        curves = {found["curve"]["swept"]: [found["curve"]["x"]] * len(gains), **found["curve"]["seeds"]}
        assert gains == pytest.approx(declared.gains({"curve": curves}), rel=1e-4, abs=1e-4 * max(map(abs, gains)))
    assert found["margin"] == declared.margin
    done = len(gains)
    assert all(judge(gains[:n], declared.margin, last=False) is None for n in LOOKS if n < done)
    assert found["verdict"] == judge(gains, declared.margin, last=done == len(declared.seeds))


@pytest.mark.parametrize("id", ["comp-sum-losses", "poly-loss"])  # the quick ones
def test_exact_claims_hold_on_fresh_seeds(id: str) -> None:
    assert check(evidence.claim_of(id), range(900, 905)).verdict == "PASS"


# ---- the fingerprint
@pytest.fixture
def edited(tmp_path: Path) -> Callable[[str, str, str], str]:
    """The fingerprint of ELR's claim in a copy of the package in which one text is replaced."""

    def fingerprint_after(file: str, old: str, new: str) -> str:
        source = tmp_path / str(len(list(tmp_path.iterdir()))) / "wellposed"
        shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / file
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), "utf-8")
        return fingerprint("wellposed.papers.claims.elr", source)

    return fingerprint_after


def test_fingerprint_follows_the_code_that_is_used(edited: Callable[[str, str, str], str]) -> None:
    now = evidence.code_hash("elr")
    for file, old, new in [
        ("objectives/elr.py", "return torch.log1p(-(", "return torch.log1p(+("),
        ("papers/arenas.py", "epochs=60, lr=2e-3", "epochs=61, lr=2e-3"),
        ("papers/claims/elr.py", "margin=6.0", "margin=0.1"),
        ("workbench/metrics.py", "return 100 * float((logits.argmax", "return 99 * float((logits.argmax"),
    ]:
        assert edited(file, old, new) != now, file


def test_fingerprint_ignores_comments_docstrings_and_what_is_not_used(edited: Callable[[str, str, str], str]) -> None:
    now = evidence.code_hash("elr")
    for file, old, new in [
        ("objectives/elr.py", "Early-learning regularization: hold on", "ELR: hold on"),
        ("papers/arenas.py", "(128, 128), epochs=60, lr=1e-3", "(64, 64), epochs=60, lr=1e-3"),  # another arena
        ("papers/arenas.py", "# ---- data", "# ---- the data"),
        ("smoothness/sam.py", "1e-12", "1e-9"),
        ("core/step.py", "zlib.crc32(repr(key)", "zlib.adler32(repr(key)"),
    ]:
        assert edited(file, old, new) == now, file
