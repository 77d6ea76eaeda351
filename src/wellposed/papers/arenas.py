"""What claims share: data with a known truth, small models, training through a recipe, and what is measured there.

A seed fixes data, initialisation, order of batches and all noise, so that two arms of one seed differ in the technique
and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Recipe
from ..tasks import Classify
from . import measures

Measure = Callable[[nn.Module, "Sample"], dict[str, float]]


# ---- data
@dataclass(frozen=True)
class Sample:
    """Training and test data of one seed: x (N, ...), y (N,) as trained on, ``clean`` without label noise."""

    x: Tensor
    y: Tensor
    clean: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int = 10


def digits(seed: int, rows: int, wrong: float = 0.0) -> Sample:
    """Scans of handwritten digits, 64 pixels in [0, 1]; each training label is made wrong with probability ``wrong``.

    The last 597 of a permutation are the test set, the first ``rows`` (at most 1200) the training set.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=g)
    train, test = order[:rows], order[-597:]
    clean = y[train]
    shift = torch.randint(1, 10, clean.shape, generator=g)
    flipped = torch.rand(clean.shape, generator=g) < wrong
    return Sample(x[train], torch.where(flipped, (clean + shift) % 10, clean), clean, x[test], y[test])


def mixture(seed: int, rows: int = 500, classes: int = 10, width: int = 20) -> Sample:
    """Overlapping Gaussian clusters of unit variance, means with variance 1/2 a coordinate; 2000 test points.

    The classes overlap, so an overfitted net is over-confident, as it is not on clean digits.
    """
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, width, generator=g) / math.sqrt(2)
    y = torch.randint(classes, (rows + 2000,), generator=g)
    x = means[y] + torch.randn(len(y), width, generator=g)
    return Sample(x[:rows], y[:rows], y[:rows], x[rows:], y[rows:], classes)


# ---- models and training
def mlp(seed: int, *sizes: int) -> nn.Sequential:
    """ReLU layers of the given sizes; more than one dimension of input is flattened."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fit(
    model: nn.Module,
    sample: Sample,
    *methods: Method,
    seed: int,
    epochs: int,
    lr: float,
    batch: int = 32,
    optimizer: torch.optim.Optimizer | None = None,
    edit: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> nn.Module:
    """Train a classifier on full batches in a shuffled order, and return it as the recipe ships it.

    Args:
        model: trained in place.
        sample: its x, y.
        methods: of the recipe, in order.
        seed: of the order of batches and all noise.
        epochs, lr, batch: of AdamW without weight decay.
        optimizer: in place of that AdamW.
        edit: changes the inputs of each batch, with a generator for its draws.
    """
    rows = len(sample.x)
    recipe = Recipe(*methods, seed=seed).attach(model, Classify(classes=sample.classes), steps=epochs * (rows // batch))
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    order, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1_000_000)
    for _ in range(epochs):
        index = torch.randperm(rows, generator=order)
        for rows_now in torch.split(index[: rows // batch * batch], batch):
            x = sample.x[rows_now]
            recipe.step({"x": edit(x, noise) if edit else x, "y": sample.y[rows_now], "index": rows_now}, optimizer)
    return recipe.finish().eval()


@dataclass(frozen=True)
class Arena:
    """Data, an MLP and its training; the words are what evidence says of it."""

    words: str
    draw: Callable[[int], Sample]
    hidden: tuple[int, ...]
    epochs: int
    lr: float
    batch: int = 32

    def train(self, seed: int, sample: Sample, *methods: Method) -> nn.Module:
        """A fresh net of this seed, trained with ``methods``."""
        model = mlp(seed, sample.x[0].numel(), *self.hidden, sample.classes)
        return fit(model, sample, *methods, seed=seed, epochs=self.epochs, lr=self.lr, batch=self.batch)

    def pair(self, seed: int, method: Method, measure: Measure, without: Method | None = None) -> dict:
        """Both arms of one seed: with ``method``, and with nothing (or ``without``) in its place."""
        sample = self.draw(seed)
        plain = [without] if without else []
        return {
            "with": measure(self.train(seed, sample, method), sample),
            "without": measure(self.train(seed, sample, *plain), sample),
        }


NOISY_DIGITS = Arena(
    "digits, 600 training scans with 40 % wrong labels; MLP 64-128-128-10, AdamW 2e-3, batch 32, 60 epochs",
    lambda seed: digits(seed, 600, wrong=0.4), (128, 128), epochs=60, lr=2e-3,
)  # fmt: skip
FEW_NOISY_DIGITS = Arena(
    "digits, 300 training scans with 20 % wrong labels; MLP 64-128-128-10, AdamW 1e-3, batch 32, 60 epochs",
    lambda seed: digits(seed, 300, wrong=0.2), (128, 128), epochs=60, lr=1e-3,
)  # fmt: skip
CLEAN_DIGITS = Arena(
    "digits, 600 training scans; MLP 64-128-128-10, AdamW 1e-3, batch 32, 60 epochs",
    lambda seed: digits(seed, 600), (128, 128), epochs=60, lr=1e-3,
)  # fmt: skip
MIXTURE = Arena(
    "10 overlapping Gaussian clusters in 20 dimensions, 500 training points; MLP 20-128-128-10, AdamW 1e-3, batch 32, "
    "60 epochs",
    mixture, (128, 128), epochs=60, lr=1e-3,
)  # fmt: skip


# ---- measurements of a net trained on a sample
@torch.no_grad()
def quality(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Test accuracy (points), NLL (nats), ECE (points); under label noise the share of wrong labels fitted (points)."""
    found = measures.quality(model, sample.x_test, sample.y_test)
    if not torch.equal(sample.y, sample.clean):
        found["wrong labels fitted"] = measures.memorised(model, sample.x, sample.y, sample.clean)
    return found


def curvature(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Quality, and how sharp the minimum is: the logarithm of the largest Hessian eigenvalue of the training loss."""
    largest = measures.sharpness(model, lambda: F.cross_entropy(model(sample.x), sample.y))
    return quality(model, sample) | {"log largest Hessian eigenvalue": math.log(largest)}


def attacked_accuracy(model: nn.Module, sample: Sample, radius: float, steps: int = 10) -> float:
    """Test accuracy (points) under projected gradient ascent within |x' - x| <= radius, inside [0, 1]."""
    return measures.attacked_accuracy(model, sample.x_test, sample.y_test, radius, steps)
