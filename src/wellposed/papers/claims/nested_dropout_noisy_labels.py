"""Compressing features against wrong labels, Chen et al. 2022."""

import math
from dataclasses import replace

from ...core import Method
from ...objectives.nested_dropout import NestedDropout, best_truncation, truncate
from ..arenas import NOISY_DIGITS, quality
from ..claim import Claim
from ..mutation import Mutation, fixed

FEATURES = "4"  # the last hidden layer of the arena's net, 128 units


def trained(seed: int, *methods: Method, cut: bool) -> dict[str, float]:
    """Quality after training on 480 scans; ``cut``: with the features that 120 other noisy ones choose."""
    sample = NOISY_DIGITS.draw(seed)
    model = NOISY_DIGITS.train(
        seed, replace(sample, x=sample.x[:480], y=sample.y[:480], clean=sample.clean[:480]), *methods
    )
    if not cut:
        return quality(model, sample)
    k, _ = best_truncation(model, FEATURES, sample.x[480:], sample.y[480:], range(4, 129, 4))
    with truncate(model, FEATURES, k):
        return quality(model, sample)


CLAIM = Claim(
    paper="nested-dropout-noisy-labels",
    statement="With 40 % wrong labels, nested dropout on the features, cut where validation data with as many wrong "
    "labels says, ends training with a higher test accuracy than plain training.",
    arena=NOISY_DIGITS.words + "; 120 of the 600 scans kept for choosing the length; last hidden layer, scale 0.25",
    quantity="accuracy",
    margin=4.0,  # a quarter of the effect on other seeds
    run=lambda seed: {
        "with": trained(seed, NestedDropout(layer=FEATURES, scale=0.25), cut=True),
        "without": trained(seed, cut=False),
    },
    mutation=Mutation(
        "all features kept in training",
        "wellposed.objectives.nested_dropout:NestedDropout",
        fixed(scale=math.inf),
    ),
)
