"""Robustness and uncertainty of regularisation methods, Chun et al. 2020."""

import torch
from torch import nn

from ...augmentation.robustness_report import robustness_report
from ...objectives.label_smoothing import LabelSmoothing
from ..arenas import Arena, Sample, digits
from ..claim import Claim
from ..mutation import Mutation, fixed

ARENA = Arena(
    "digits, 400 training scans; MLP 64-128-128-10, AdamW 1e-3, batch 32, 60 epochs",
    lambda seed: digits(seed, 400), (128, 128), epochs=60, lr=1e-3,
)  # fmt: skip


def report(model: nn.Module, sample: Sample) -> dict[str, float]:
    """The report with radius 0.05; unknown inputs are test scans with their pixels shuffled."""
    pixels = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    return robustness_report(model, sample.x_test, sample.y_test, unknown=sample.x_test[:, pixels], radius=0.05)


CLAIM = Claim(
    paper="regularizer-robustness-eval",
    statement="A cheap regulariser is a strong baseline for robustness: label smoothing raises the accuracy under a "
    "one-step attack over that of plain training.",
    arena=ARENA.words + "; signed gradient step of 0.05, pixels in [0, 1]; epsilon 0.1",
    quantity="attacked",
    margin=1.0,  # a fifth of the effect on other seeds
    run=lambda seed: ARENA.pair(seed, LabelSmoothing(epsilon=0.1), report),
    mutation=Mutation(
        "epsilon 0",
        "wellposed.objectives.label_smoothing:LabelSmoothing",
        fixed(epsilon=0.0),
    ),
)
