"""Dual focal loss, Tao et al. 2023."""

import torch
import torch.nn.functional as F
from torch import nn

from ...objectives.dual_focal_loss import DualFocalLoss, FocalLoss
from ..arenas import Arena, Sample, quality
from ..claim import Claim
from ..mutation import Mutation, fixed


def distinct_clusters(seed: int) -> Sample:
    """Gaussian clusters as in the mixture arena, their means 1.4 times further apart."""
    g = torch.Generator().manual_seed(seed)
    means = 1.4 / 2**0.5 * torch.randn(10, 20, generator=g)
    y = torch.randint(10, (2500,), generator=g)
    x = means[y] + torch.randn(2500, 20, generator=g)
    return Sample(x[:500], y[:500], y[:500], x[500:], y[500:])


@torch.no_grad()
def calibration(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Quality, and mean confidence minus accuracy in points."""
    found = quality(model, sample)
    confidence = 100 * float(F.softmax(model(sample.x_test), -1).amax(-1).mean())
    return found | {"confidence minus accuracy": confidence - found["accuracy"]}


ARENA = Arena(
    "10 Gaussian clusters in 20 dimensions, 500 training points, means with variance 0.98 a coordinate; MLP "
    "20-128-128-10, AdamW 1e-3, batch 32, 60 epochs",
    distinct_clusters, (128, 128), epochs=60, lr=1e-3,
)  # fmt: skip

CLAIM = Claim(
    paper="dual-focal-loss",
    statement="Where the focal loss makes a net under-confident, the dual focal loss with the same exponent is better "
    "calibrated: a lower calibration error.",
    arena=ARENA.words + "; gamma 5 for both",
    quantity="ece",
    direction="lower",
    margin=0.6,  # a third of the effect on other seeds
    run=lambda seed: ARENA.pair(seed, DualFocalLoss(gamma=5.0), calibration, without=FocalLoss(gamma=5.0)),
    mutation=Mutation(
        "without the second probability", "wellposed.objectives.dual_focal_loss:_modulated", fixed(dual=False)
    ),
)
