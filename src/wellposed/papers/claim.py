"""Claim: one paper's central sentence as something that runs, and the rule that judges it.

A paired claim trains with and without a technique on the same seeds and looks at the differences after 5, 10 and 20 of
them; a curve claim does so with a number drawn from each seed's curve. An exact claim compares with a closed form, a
cost claim counts. Direction, margin and tolerance are part of the declaration, so they are fixed before anything runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..workbench.statistics import moments, paired_interval
from .mutation import Mutation

Kind = Literal["paired", "exact", "curve", "cost"]
Verdict = Literal["PASS", "FAIL", "NULL"]
Curve = Mapping[str, Sequence[float]]
Run = Callable[[int], Mapping[str, Mapping[str, Any]]]
Arms = dict[str, dict[str, list[Any]]]

ARMS: dict[Kind, set[str]] = {
    "paired": {"with", "without"}, "exact": {"errors"}, "curve": {"curve"}, "cost": {"with", "without"},
}  # fmt: skip
"""What ``run`` measures."""

LOOKS = (5, 10, 20)
"""Numbers of paired seeds after which a verdict may fall."""
LEVEL = 1 - 2 * 0.05 / len(LOOKS)
"""Coverage of the two-sided interval at a look: alpha = 0.05 one-sided, shared among the looks."""


class ClaimError(RuntimeError):
    """A claim could not be run to its end: a defect, not a verdict."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, and how it is checked.

    Attributes:
        paper: catalogue id.
        statement: the sentence, in our own words, with the comparison in it.
        arena: data, model and training in words.
        quantity: what decides, and its unit. Of a paired claim a key of what ``run`` measures.
        run: one seed, by kind:
            paired: ``{"with": {quantity: value, ...}, "without": {...}}``;
            exact: ``{"errors": {what was compared: error, ...}}``;
            curve: ``{"curve": {swept variable: [x, ...], series: [y, ...], ...}}``, the swept variable first, the same
            x for every seed;
            cost: ``{"with": {quantity: count, ...}, "without": {...}}``, counts that no clock or load changes.
        mutation: a damage to the technique under which the claim must lose its PASS.
        kind: paired and curve claims are judged by an interval over seeds, exact and cost claims by their worst case.
        direction: of a paired claim: is the quantity to be higher or lower with the technique?
        margin: of a paired or curve claim: smallest gain, above 0, that would still deserve the sentence.
        gain: of a curve claim: the number that is judged, positive in the direction claimed, from one seed's curve.
        tolerance: of an exact claim the largest error, of a cost claim the largest ratio with / without; above 0.
        seeds: frozen; of an exact or cost claim the first five are used.
    """

    paper: str
    statement: str
    arena: str
    quantity: str
    run: Run
    mutation: Mutation
    kind: Kind = "paired"
    direction: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    gain: Callable[[Curve], float] | None = None
    tolerance: float = 0.0
    seeds: tuple[int, ...] = tuple(range(100, 120))

    def __post_init__(self) -> None:
        bar, name = (self.margin, "margin") if self.sampled else (self.tolerance, "tolerance")
        if not 0 < bar < math.inf:
            raise ValueError(f"the claim of {self.paper} needs a {name} above 0, got {bar:g}")
        if (self.gain is None) == (self.kind == "curve"):
            raise ValueError(f"the claim of {self.paper}: a curve claim, and no other, needs a gain")
        check_seeds(self.seeds)

    @property
    def sampled(self) -> bool:
        """Whether an interval over seeds decides."""
        return self.kind in ("paired", "curve")

    def gains(self, arms: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[float]:
        """Of a paired or curve claim: the number that is judged, for every seed."""
        if self.gain is None:
            return differences(arms, self.quantity, self.direction)
        curves = arms["curve"]
        return [
            float(self.gain(dict(zip(curves, of_seed, strict=True)))) for of_seed in zip(*curves.values(), strict=True)
        ]


@dataclass(frozen=True)
class Outcome:
    """What running a claim gave.

    Attributes:
        verdict: PASS, FAIL or NULL.
        estimate: mean gain, positive in the direction claimed; of an exact claim the largest error, of a cost claim the
            largest ratio.
        interval: of the mean gain, with coverage ``LEVEL``; None for an exact or cost claim.
        seeds: those that were run.
        arms: what every seed measured: arm -> quantity -> values in the order of ``seeds``; of a curve claim each
            value is a list over the swept variable.
        gains: what was judged, in the order of ``seeds``; empty for an exact or cost claim.
        seconds: of processor time, all runs together.
    """

    verdict: Verdict
    estimate: float
    interval: tuple[float, float] | None
    seeds: tuple[int, ...]
    arms: Arms
    gains: tuple[float, ...]
    seconds: float


def judge(gains: Sequence[float], margin: float, last: bool) -> Verdict | None:
    """The verdict at one look; None: look again after more seeds.

    FAIL if the effect is below the margin (upper bound), PASS if it is above 0 (lower bound), each one-sided at a third
    of 5 %. An effect that is real but surely smaller than the margin fails: it does not deserve the sentence.

    Args:
        gains: paired differences, or what was drawn from curves; at least 2, positive in the direction claimed.
        margin: smallest effect worth the sentence, above 0.
        last: whether this is the last look, where what is undecided is NULL.
    """
    low, high = paired_interval(gains, LEVEL)
    if high < margin:
        return "FAIL"
    if low > 0:
        return "PASS"
    return "NULL" if last else None


def looks(seeds: int) -> list[int]:
    """After how many of ``seeds`` runs the rule looks: at most three times, last after all."""
    return sorted({n for n in LOOKS[:-1] if n < seeds} | {seeds})


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError for fewer than five different seeds, or a negative one."""
    if len(set(seeds)) < LOOKS[0] or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"a claim needs at least {LOOKS[0]} different seeds of at least 0, got {list(seeds)}")


def check(claim: Claim, seeds: Sequence[int] | None = None) -> Outcome:
    """Run a claim, in one thread, until a look decides.

    Args:
        claim: the declaration.
        seeds: in place of the claim's own.

    Raises:
        ClaimError: if what ``run`` measured is not finite, or not what the claim names.
    """
    seeds = tuple(claim.seeds if seeds is None else seeds)
    check_seeds(seeds)
    arms: Arms = {}
    threads, start = torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)
    try:
        if not claim.sampled:
            seeds = seeds[: LOOKS[0]]
            for seed in seeds:
                _add(arms, claim, seed)
            worst = max(max(values) for values in (arms["errors"] if claim.kind == "exact" else ratios(arms)).values())
            within: Verdict = "PASS" if worst <= claim.tolerance else "FAIL"
            return Outcome(within, worst, None, seeds, arms, (), time.process_time() - start)
        done = 0
        for look in looks(len(seeds)):
            for seed in seeds[done:look]:
                _add(arms, claim, seed)
            done = look
            gains = claim.gains(arms)
            if not all(map(math.isfinite, gains)):
                raise ClaimError(f"the gains of the claim of {claim.paper} are {gains}")
            if verdict := judge(gains, claim.margin, last=done == len(seeds)):
                break
        assert verdict
        interval = paired_interval(gains, LEVEL)
        seconds = time.process_time() - start
        return Outcome(verdict, moments(gains)[1], interval, seeds[:done], arms, tuple(gains), seconds)
    finally:
        torch.set_num_threads(threads)


def differences(arms: Mapping[str, Mapping[str, Sequence[float]]], quantity: str, direction: str) -> list[float]:
    """With minus without, seed by seed; the sign turned where lower is claimed."""
    sign = 1.0 if direction == "higher" else -1.0
    return [sign * (a - b) for a, b in zip(arms["with"][quantity], arms["without"][quantity], strict=True)]


def ratios(arms: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """With over without, seed by seed, for every quantity of a cost claim."""
    return {
        quantity: [a / b for a, b in zip(values, arms["without"][quantity], strict=True)]
        for quantity, values in arms["with"].items()
    }


def _add(arms: Arms, claim: Claim, seed: int) -> None:
    """Run one seed and append what it measured."""
    found = claim.run(seed)
    if set(found) != ARMS[claim.kind] or not all(found.values()) or not _judgeable(claim, found):
        raise ClaimError(f"the claim of {claim.paper} measured {found}, without what it is judged by")
    for arm, measured in found.items():
        kept = arms.setdefault(arm, {})
        for quantity, value in measured.items():
            numbers = [float(v) for v in value] if claim.kind == "curve" else [float(value)]
            if not all(map(math.isfinite, numbers)):
                raise ClaimError(f"{claim.paper}, seed {seed}, arm '{arm}': {quantity} is {value}")
            kept.setdefault(quantity, []).append(numbers if claim.kind == "curve" else numbers[0])
    if claim.kind == "curve":
        swept = next(iter(arms["curve"].values()))
        if list(arms["curve"]) != list(found["curve"]) or swept[0] != swept[-1]:
            raise ClaimError(f"{claim.paper}, seed {seed}: another sweep than the first seed's")


def _judgeable(claim: Claim, found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether what one seed measured can be judged."""
    if claim.kind == "paired":
        return all(claim.quantity in measured for measured in found.values())
    if claim.kind == "curve":
        lengths = {len(values) for values in found["curve"].values()}
        return len(found["curve"]) > 1 and len(lengths) == 1 and min(lengths) > 1
    if claim.kind == "cost":
        counts = [*found["with"].values(), *found["without"].values()]
        return set(found["with"]) == set(found["without"]) and min(counts) >= 0 and min(found["without"].values()) > 0
    return True
