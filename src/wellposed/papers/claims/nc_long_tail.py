"""Inducing neural collapse in deep long-tailed learning, Liu et al. 2023."""

import torch
from torch import nn

from ...objectives.neural_collapse import NeuralCollapse
from ..arenas import Arena, Sample, digits, quality
from ..claim import Claim
from ..mutation import Mutation, zero

FEATURES = "4"  # the last hidden layer


def long_tailed(seed: int) -> Sample:
    """Digits, 100 scans of one class and 50 times fewer of the last, geometrically between, the order drawn."""
    full = digits(seed, 1200)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
    kept = torch.cat([(full.y == k).nonzero()[: round(100 * 50 ** (-i / 9)), 0] for i, k in enumerate(order)])
    return Sample(full.x[kept], full.y[kept], full.y[kept], full.x_test, full.y_test)


@torch.no_grad()
def scatter(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Quality, and trace of the scatter within classes over that between them, of the test data's features."""
    assert isinstance(model, nn.Sequential)
    h, y = model[: int(FEATURES) + 1](sample.x_test), sample.y_test
    means = torch.stack([h[y == k].mean(0) for k in range(sample.classes)])
    within, between = (h - means[y]).square().sum(1).mean(), (means - means.mean(0)).square().sum(1).mean()
    return quality(model, sample) | {"within over between": float(within / between)}


ARENA = Arena(
    "long-tailed digits, 100 to 2 training scans of a class; MLP 64-128-128-10, AdamW 1e-3, batch 32, 60 epochs",
    long_tailed, (128, 128), epochs=60, lr=1e-3,
)  # fmt: skip

CLAIM = Claim(
    paper="nc-long-tail",
    statement="On long-tailed classes, pulling features to class means that are pushed apart brings them closer to "
    "neural collapse: less scatter within classes against that between them, on test data.",
    arena=ARENA.words + "; last hidden layer, strength 0.01, separation 10, rate 0.1",
    quantity="within over between",
    direction="lower",
    margin=0.02,
    run=lambda seed: ARENA.pair(seed, NeuralCollapse(layer=FEATURES, classes=10, width=128), scatter),
    mutation=Mutation("strength 0", "wellposed.objectives.neural_collapse:NeuralCollapse.penalty", zero),
)
