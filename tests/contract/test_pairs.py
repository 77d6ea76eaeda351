"""Any two techniques compose: they train together and resume exactly, or refuse each other at attach with a sentence.

A sample runs by default: one pair for every two sets of slots, and three partners for every technique. All pairs:
``make pairs``.
"""

from __future__ import annotations

import copy
import os
import random
from itertools import combinations

import pytest
import torch
from problems import METHODS, Trial, kind_of, make_method, trial

import wellposed as wp
from wellposed.core.registry import catalogue

pytestmark = pytest.mark.filterwarnings("ignore:.*couples the samples of a batch.*:UserWarning")


def all_pairs() -> list[tuple[str, str]]:
    """Pairs of techniques whose examples work on one kind of model."""
    plain = {"mlp": {"mlp", "normed"}, "conv": {"conv"}, "ode": {"mlp", "normed", "ode"}}

    def fits(a: str, b: str) -> bool:
        kinds = {kind_of(a), kind_of(b)}
        return any(kinds <= k for k in plain.values()) or len(kinds) == 1 or kinds <= {"mlp", "normed", "conv"}

    return [(a, b) for a, b in combinations(METHODS, 2) if fits(a, b)]


def sample() -> list[tuple[str, str]]:
    """A stratified sample, the same on every machine."""
    pairs, slots = all_pairs(), {n: catalogue()[n].slots() for n in METHODS}
    random.Random(0).shuffle(pairs)
    strata: set[frozenset[tuple[str, ...]]] = set()
    partners = dict.fromkeys(METHODS, 0)
    chosen = []
    for a, b in pairs:
        stratum = frozenset((slots[a], slots[b]))
        if stratum not in strata or partners[a] < 3 or partners[b] < 3:
            strata.add(stratum)
            partners[a] += 1
            partners[b] += 1
            chosen.append((a, b))
    return sorted(chosen)


PAIRS = all_pairs() if os.environ.get("WELLPOSED_PAIRS") == "all" else sample()


def together(a: str, b: str) -> Trial:
    kind = next((k for k in ("conv", "ode") if k in (kind_of(a), kind_of(b))), kind_of(a))
    return trial(lambda: [make_method(a), make_method(b)], kind, norm=True)


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=lambda name: name)
def test_pair(a: str, b: str) -> None:
    try:
        first = together(a, b).run(2)
    except (wp.RecipeError, ValueError) as refused:
        refusal = str(refused)
    else:
        refusal = ""
    if refusal:
        assert a in refusal or b in refusal or "'" in refusal, refusal
        return
    assert torch.isfinite(first.weights()).all()
    second = together(a, b)
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.recipe.load_state_dict(copy.deepcopy(first.recipe.state_dict()))
    first.run(2, start=2)
    second.run(2, start=2)
    assert torch.equal(first.weights(), second.weights())
    assert first.recipe.detach() is first.model
