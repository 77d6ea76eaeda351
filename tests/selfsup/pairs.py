"""Noisy views, and the small nets on which every criterion of two views is tried."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wellposed import Recipe
from wellposed.papers.nets import ConvNet, Transformer, seeded
from wellposed.tasks import TwoViews

Criterion = Callable[[Tensor, Tensor], Tensor]


def views(rows: int = 8, width: int = 3, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two noisy copies of the same Gaussian rows, in float64."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, width, generator=g, dtype=torch.float64)
    a, b = (shared + noise * torch.randn(rows, width, generator=g, dtype=torch.float64) for _ in range(2))
    return a, b


def fitted(criterion: Criterion, kind: str, steps: int = 30) -> list[float]:
    """Losses of a conv net with BatchNorm or a transformer, trained on noisy views of 16 inputs."""
    g = torch.Generator().manual_seed(0)
    shape = (16, 64) if kind == "conv" else (16, 6, 4)
    model = seeded(0, ConvNet, 4) if kind == "conv" else seeded(0, Transformer, 6, 4, size=4, width=16, pooled=True)
    x = torch.randn(shape, generator=g)
    recipe = Recipe().attach(model, TwoViews(criterion))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return [
        float(recipe.step({k: x + 0.1 * torch.randn(shape, generator=g) for k in ("x1", "x2")}, optimizer)["task"])
        for _ in range(steps)
    ]
