"""Logit attenuating weight normalization, Gupta et al. 2021."""

import torch
from torch import nn

from ...weights.lawn import LAWN
from ..arenas import Arena, Sample, digits, quality
from ..claim import Claim
from ..mutation import Mutation, fixed

LARGE_BATCH = Arena(
    "digits, 1000 training scans with 20 % wrong labels; MLP 64-128-128-10, AdamW 3e-3, batch 500, 150 epochs",
    lambda seed: digits(seed, 1000, wrong=0.2), (128, 128), epochs=150, lr=3e-3, batch=500,
)  # fmt: skip


@torch.no_grad()
def measure(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Quality, and the mean largest logit."""
    return quality(model, sample) | {"largest logit": float(model(sample.x_test).amax(1).mean())}


CLAIM = Claim(
    paper="lawn",
    statement="With large batches and many epochs on partly wrong labels, Adam with weights of constant length ends at "
    "a higher test accuracy than Adam alone.",
    arena=LARGE_BATCH.words + "; the first tenth of training free; no weight decay in either arm",
    quantity="accuracy",
    margin=2.5,  # under a third of the +8.6 seen on other seeds
    run=lambda seed: LARGE_BATCH.pair(seed, LAWN(), measure),
    mutation=Mutation(words="the free phase never ends", target="wellposed.weights.lawn:LAWN", by=fixed(free=1.0)),
)
