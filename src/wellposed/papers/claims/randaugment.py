"""RandAugment, Cubuk et al. 2019."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import pad

from ...augmentation.randaugment import RandAugment
from ...workbench.metrics import accuracy
from ..arenas import Sample, digits, fit, quality
from ..claim import Claim
from ..mutation import Mutation, fixed
from ..nets import ConvNet, seeded


@torch.no_grad()
def measure(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Quality, and the mean accuracy on test scans moved by one pixel in four directions."""
    wide = pad(sample.x_test, (1, 1, 1, 1))
    corners = ((0, 1), (2, 1), (1, 0), (1, 2))
    moved = [accuracy(model(wide[..., i : i + 8, j : j + 8]), sample.y_test) for i, j in corners]
    return quality(model, sample) | {"accuracy on moved scans": sum(moved) / 4}


def pair(seed: int) -> dict[str, dict[str, float]]:
    """The same conv net with and without the operations."""
    flat = digits(seed, 200)
    sample = replace(flat, x=flat.x.view(-1, 1, 8, 8), x_test=flat.x_test.view(-1, 1, 8, 8))
    arms = {}
    for name, methods in (("with", [RandAugment()]), ("without", [])):
        model = fit(seeded(seed, ConvNet, 10), sample, *methods, seed=seed, epochs=60, lr=2e-3)
        arms[name] = measure(model, sample)
    return arms


CLAIM = Claim(
    paper="randaugment",
    statement="Two random operations an image, all at one magnitude, make a conv net recognise digits that are moved "
    "by one pixel more often than plain training does.",
    arena="digits as 8 x 8 images, 200 training scans; conv net 16-32 with BatchNorm, AdamW 2e-3, batch 32, 60 epochs; "
    "2 operations at magnitude 0.3",
    quantity="accuracy on moved scans",
    margin=10.0,  # a quarter of the +43 seen on other seeds
    run=pair,
    mutation=Mutation(
        words="no operations (n 0)", target="wellposed.augmentation.randaugment:RandAugment", by=fixed(n=0)
    ),
)
