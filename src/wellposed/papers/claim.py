"""Claim: one paper's central sentence as something that runs, and the rule that judges it.

A paired claim trains with and without a technique on the same seeds and looks at the differences after 5, 10 and 20 of
them; an exact claim compares with a closed form. Direction and margin are part of the declaration, so they are fixed
before anything runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..workbench.statistics import moments, paired_interval

Kind = Literal["paired", "exact"]
Verdict = Literal["PASS", "FAIL", "NULL"]
Measured = Mapping[str, float]
Run = Callable[[int], Mapping[str, Measured]]

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
        run: one seed. Paired: ``{"with": {quantity: value, ...}, "without": {...}}``. Exact: ``{"errors": {what was
            compared: error, ...}}``.
        kind: ``"paired"`` or ``"exact"``.
        direction: of a paired claim: is the quantity to be higher or lower with the technique?
        margin: of a paired claim: smallest difference, above 0, that would still deserve the sentence.
        tolerance: of an exact claim: largest error, above 0.
        seeds: frozen; of an exact claim the first five are used.
    """

    paper: str
    statement: str
    arena: str
    quantity: str
    run: Run
    kind: Kind = "paired"
    direction: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    tolerance: float = 0.0
    seeds: tuple[int, ...] = tuple(range(100, 120))

    def __post_init__(self) -> None:
        bar, name = (self.margin, "margin") if self.kind == "paired" else (self.tolerance, "tolerance")
        if not 0 < bar < math.inf:
            raise ValueError(f"the claim of {self.paper} needs a {name} above 0, got {bar:g}")
        check_seeds(self.seeds)


@dataclass(frozen=True)
class Outcome:
    """What running a claim gave.

    Attributes:
        verdict: PASS, FAIL or NULL.
        estimate: paired: mean difference, positive in the direction claimed. Exact: the largest error.
        interval: of the mean difference, with coverage ``LEVEL``; None for an exact claim.
        seeds: those that were run.
        arms: what every seed measured: arm -> quantity -> values in the order of ``seeds``.
        seconds: of processor time, all runs together.
    """

    verdict: Verdict
    estimate: float
    interval: tuple[float, float] | None
    seeds: tuple[int, ...]
    arms: dict[str, dict[str, list[float]]]
    seconds: float


def judge(gains: Sequence[float], margin: float, last: bool) -> Verdict | None:
    """The verdict at one look; None: look again after more seeds.

    FAIL if the effect is below the margin (upper bound), PASS if it is above 0 (lower bound), each one-sided at a third
    of 5 %. An effect that is real but surely smaller than the margin fails: it does not deserve the sentence.

    Args:
        gains: paired differences, at least 2, positive in the direction claimed.
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
    arms: dict[str, dict[str, list[float]]] = {}
    threads, start = torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)
    try:
        if claim.kind == "exact":
            seeds = seeds[: LOOKS[0]]
            for seed in seeds:
                _add(arms, claim, seed)
            errors = [e for values in arms["errors"].values() for e in values]
            worst = max(errors)
            within: Verdict = "PASS" if worst <= claim.tolerance else "FAIL"
            return Outcome(within, worst, None, seeds, arms, time.process_time() - start)
        done = 0
        for look in looks(len(seeds)):
            for seed in seeds[done:look]:
                _add(arms, claim, seed)
            done = look
            gains = differences(arms, claim.quantity, claim.direction)
            if verdict := judge(gains, claim.margin, last=done == len(seeds)):
                break
        assert verdict
        interval = paired_interval(gains, LEVEL)
        return Outcome(verdict, moments(gains)[1], interval, seeds[:done], arms, time.process_time() - start)
    finally:
        torch.set_num_threads(threads)


def differences(arms: Mapping[str, Mapping[str, Sequence[float]]], quantity: str, direction: str) -> list[float]:
    """With minus without, seed by seed; the sign turned where lower is claimed."""
    sign = 1.0 if direction == "higher" else -1.0
    return [sign * (a - b) for a, b in zip(arms["with"][quantity], arms["without"][quantity], strict=True)]


def _add(arms: dict[str, dict[str, list[float]]], claim: Claim, seed: int) -> None:
    """Run one seed and append what it measured."""
    found = claim.run(seed)
    wanted = {"errors"} if claim.kind == "exact" else {"with", "without"}
    missing = claim.kind == "paired" and any(claim.quantity not in found.get(arm, {}) for arm in wanted)
    if set(found) != wanted or missing or not all(found.values()):
        raise ClaimError(f"the claim of {claim.paper} measured {found}, without what it is judged by")
    for arm, measured in found.items():
        for quantity, value in measured.items():
            if not math.isfinite(value):
                raise ClaimError(f"{claim.paper}, seed {seed}, arm '{arm}': {quantity} is {value}")
            arms.setdefault(arm, {}).setdefault(quantity, []).append(float(value))
