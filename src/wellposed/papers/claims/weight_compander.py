"""Weight compander, Cakaj, Mehnert, Yang 2023."""

import torch
from torch import nn

from ...weights.weight_compander import WeightCompander
from ..arenas import NOISY_DIGITS, Sample, quality
from ..claim import Claim
from ..mutation import Mutation, fixed


@torch.no_grad()
def measure(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Quality, and the shape of the weights' distribution: mean over layers."""
    small, kurtosis = [], []
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            w = layer.weight
            sd = w.std()
            small.append((w.abs() < 0.05 * sd).double().mean())
            kurtosis.append(((w - w.mean()) / sd).pow(4).mean())
    return quality(model, sample) | {
        "weights within 0.05 sd of 0": 100 * float(torch.stack(small).mean()),
        "kurtosis": float(torch.stack(kurtosis).mean()),
    }


CLAIM = Claim(
    paper="weight-compander",
    statement="Training weights through a bounded arctangent moves them away from zero: fewer of them are near it than "
    "after plain training.",
    arena=NOISY_DIGITS.words + "; a = b = the largest initial weight",
    quantity="weights within 0.05 sd of 0",
    direction="lower",
    margin=0.75,  # a quarter of the -3.00 points seen on other seeds
    run=lambda seed: NOISY_DIGITS.pair(seed, WeightCompander(), measure),
    mutation=Mutation(
        words="a bound a thousand times as wide, where the arctangent is straight",
        target="wellposed.weights.weight_compander:WeightCompander",
        by=fixed(a=1e3, b=1e3),
    ),
)
