"""Adaptive mixup, Guo, Mao, Zhang 2019."""

import torch

from ...augmentation.adamixup import AdaMixUp, intrusion_rate, policy_shares
from ...augmentation.mixup import MixUp
from ..arenas import Sample, fit, mlp, quality
from ..claim import Claim
from ..mutation import Mutation, nothing


def stripes(seed: int) -> Sample:
    """Five clusters in a row, classes 0 1 0 1 0: 240 training points in the plane, 1000 test points, sd 0.12."""
    g = torch.Generator().manual_seed(seed)
    place = torch.randint(5, (1240,), generator=g)
    x = torch.stack([place - 2.0, torch.zeros(1240)], 1) + 0.12 * torch.randn(1240, 2, generator=g)
    y = place % 2
    return Sample(x[:240], y[:240], y[:240], x[240:], y[240:], 2)


def pair(seed: int) -> dict[str, dict[str, float]]:
    """AdaMixUp and mixup (alpha 1), each trained; then how often a mixture of one class lands on the other."""
    sample, arms = stripes(seed), {}
    g = torch.Generator().manual_seed(seed)
    partner, u = torch.randint(240, (240,), generator=g), torch.rand(240, generator=g)
    same = sample.y == sample.y[partner]
    adaptive = AdaMixUp(width=2)
    for name, method in (("with", adaptive), ("without", MixUp(alpha=1.0))):
        model = fit(mlp(seed, 2, 32, 32, 2), sample, method, seed=seed, epochs=60, lr=3e-3, batch=40)
        share = u  # Beta(1, 1) is uniform
        if name == "with":
            with torch.no_grad():
                share = policy_shares(adaptive.policy(torch.cat([sample.x, sample.x[partner]], 1)), u)
        mixed = torch.lerp(sample.x[partner], sample.x, share[:, None])
        rate = intrusion_rate(mixed[same], sample.y[same], sample.x, sample.y, radius=0.08)
        arms[name] = quality(model, sample) | {"intrusion (points)": 100 * float(rate)}
        arms[name]["mean smaller share"] = float(torch.minimum(share, 1 - share).mean())
    return arms


CLAIM = Claim(
    paper="adamixup",
    statement="Where the classes lie between each other, mixtures of two samples of one class land on samples of the "
    "other less often with learned ratios than with mixup's.",
    arena="five clusters in a row in the plane, classes alternating, 240 training points; MLP 2-32-32-2, AdamW 3e-3, "
    "batch 40, 60 epochs; a mixture intrudes if its nearest sample is closer than 0.08 and of the other class",
    quantity="intrusion (points)",
    direction="lower",
    margin=5.0,  # about a third of the -14 seen on other seeds
    run=pair,
    mutation=Mutation(
        words="policy and critic not trained",
        target="wellposed.augmentation.adamixup:AdaMixUp.update",
        by=nothing,
    ),
)
