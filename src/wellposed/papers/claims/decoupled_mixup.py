"""Decoupled mixup, Liu et al. 2022."""

import torch
from torch import nn

from ...augmentation.decoupled_mixup import DecoupledMixup
from ...workbench.metrics import accuracy
from ..arenas import CLEAN_DIGITS, Sample
from ..claim import Claim
from ..mutation import Mutation, fixed


@torch.no_grad()
def measure(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Share of 30/70 mixtures of test scans (in points) of which the two first guesses are the two classes mixed."""
    x, y = sample.x_test, sample.y_test
    partner = torch.arange(len(x)).flip(0)
    differ = y != y[partner]
    guesses = model(0.3 * x + 0.7 * x[partner]).topk(2, -1).indices
    both = (guesses == y[:, None]).any(-1) & (guesses == y[partner][:, None]).any(-1)
    return {"top-2 on mixtures": 100 * float(both[differ].float().mean()), "accuracy": accuracy(model(x), y)}


CLAIM = Claim(
    paper="decoupled-mixup",
    statement="Rewarding confidence in either mixed class names both classes of uneven mixtures more often than mixup "
    "does.",
    arena=CLEAN_DIGITS.words + "; alpha 1, strength 1 against plain mixup (strength 0); mixtures 30/70 of test scans",
    quantity="top-2 on mixtures",
    margin=1.3,  # a quarter of the +5.2 seen on other seeds
    run=lambda seed: CLEAN_DIGITS.pair(
        seed, DecoupledMixup(strength=1.0), measure, without=DecoupledMixup(strength=0.0)
    ),
    mutation=Mutation(
        words="strength 0",
        target="wellposed.augmentation.decoupled_mixup:DecoupledMixup",
        by=fixed(strength=0.0),
    ),
)
