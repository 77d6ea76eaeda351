"""A classifier with BatchNorm, trained on clean digits, and the corrupted streams it is then tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .arenas import Sample, digits, fit

ROWS, EPOCHS, LR = 1200, 20, 2e-3
WORDS = "digits, 1200 training scans; MLP 64-128-128-10 with BatchNorm, AdamW 2e-3, batch 32, 20 epochs"


def source(seed: int) -> tuple[nn.Module, Sample]:
    """The trained model in eval mode, and its data."""
    sample = digits(seed, ROWS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in ((64, 128), (128, 128)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(128, 10))
    return fit(model, sample, seed=seed, epochs=EPOCHS, lr=LR), sample


def gaussian(x: Tensor, g: torch.Generator, sd: float = 0.3) -> Tensor:
    """Noise on every pixel."""
    return x + sd * torch.randn(x.shape, generator=g)


def faded(x: Tensor, g: torch.Generator) -> Tensor:
    """Four tenths of the contrast, a random brightness for the whole stream, and a little noise."""
    return 0.4 * x + 0.3 * torch.rand(1, generator=g) + 0.1 * torch.randn(x.shape, generator=g)


def blurred(x: Tensor, g: torch.Generator) -> Tensor:
    """Each pixel the mean of its 3 x 3 neighbourhood."""
    return nn.functional.avg_pool2d(x.view(-1, 1, 8, 8), 3, 1, 1).flatten(1)


def dropped(x: Tensor, g: torch.Generator) -> Tensor:
    """A third of the pixels black."""
    return x * (torch.rand(x.shape, generator=g) > 1 / 3)


CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "noise": gaussian, "fading": faded, "blur": blurred, "dropping": dropped,
}  # fmt: skip


def streamed(predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, g: Any, *, passes: int, batch: int) -> float:
    """Accuracy, in points, of what was predicted over all passes, batch by batch in a shuffled order."""
    right = total = 0
    for _ in range(passes):
        for rows in torch.split(torch.randperm(len(x), generator=g)[: len(x) // batch * batch], batch):
            right += int((predict(x[rows]).argmax(-1) == y[rows]).sum())
            total += len(rows)
    return 100 * right / total
