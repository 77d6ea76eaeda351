"""Diffusion in the plane, for claims: mixtures whose best denoiser is known, a small net, its training, and distances
between sets of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Method, Recipe
from ..tasks.denoise import Denoise
from .nets import seeded

Draw = Callable[[int, torch.Generator], Tensor]


# ---- data
@dataclass(frozen=True)
class Mixture:
    """Gaussians of one variance and equal weight.

    Attributes:
        means: (K, D).
        std: of every coordinate, at least 0.
    """

    means: Tensor
    std: float

    def draw(self, count: int, g: torch.Generator) -> Tensor:
        """Points (count, D)."""
        chosen = self.means[torch.randint(len(self.means), (count,), generator=g)]
        return chosen + self.std * torch.randn(chosen.shape, generator=g, dtype=chosen.dtype)

    def clean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The best estimate of x from x_t = alpha x + sigma noise, its posterior mean; (B, D) from (B, D).

        Args:
            x_t: noisy points.
            alpha, sigma: their levels, (B, 1), as ``Denoise.levels`` gives them; not both the std and sigma are 0.
        """
        means = self.means.to(x_t)
        total = (alpha * self.std).square() + sigma.square()
        off = x_t[:, None] - alpha[:, None] * means  # (B, K, D)
        share = (-off.square().sum(-1) / (2 * total)).softmax(1)
        return (share[..., None] * (means + (alpha * self.std**2 / total)[:, None] * off)).sum(1)


def ring(radius: float = 1.4, std: float = 0.1, modes: int = 8) -> Mixture:
    """Modes evenly spaced on a circle around 0."""
    angle = torch.arange(modes) * (2 * math.pi / modes)
    return Mixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std)


# ---- model and training
class PointNet(nn.Module):
    """SiLU layers from points (B, 2) and times (B,) to (B, 2); times are divided by ``period``."""

    def __init__(self, period: float = 1.0, width: int = 64) -> None:
        super().__init__()
        self.period = period
        self.first = nn.Sequential(nn.Linear(3, width), nn.SiLU())
        self.rest = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def hidden(self, x: Tensor, t: Tensor) -> Tensor:
        """Output of the first layer."""
        return self.first(torch.cat([x, t[:, None].to(x) / self.period], 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """What the task asks for."""
        return self.rest(self.hidden(x, t))


def trained(
    task: Denoise, draw: Draw, seed: int, *methods: Method, updates: int, batch: int = 128, lr: float = 2e-3
) -> PointNet:
    """A net of this seed after so many updates of AdamW, without weight decay, on fresh points."""
    model: PointNet = seeded(seed, PointNet, 1.0 if task.continuous else float(task.steps))
    recipe = Recipe(*methods, seed=seed).attach(model, task, steps=updates)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    g = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        recipe.step(task.draw(draw(batch, g), g), optimizer)
    recipe.finish()
    return model


# ---- measurements
@torch.no_grad()
def clean_error(model: nn.Module, task: Denoise, data: Mixture, seed: int, rows: int = 200) -> Tensor:
    """Mean squared distance of the clean sample a net amounts to from the best estimate, at every time; (steps,).

    Of a discrete schedule; ``rows`` fresh points a time.
    """
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(task.steps).repeat_interleave(rows)
    x = data.draw(len(t), g)
    batch = {"x": x, "t": t, "noise": torch.randn(x.shape, generator=g)}
    out = task.forward(model, batch)
    x0, _ = task.estimates(out["prediction"], out["x_t"], t)
    best = data.clean(out["x_t"].double(), *task.levels(t, x.double()))
    return (x0 - best).square().sum(1).view(task.steps, rows).mean(1)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 128) -> float:
    """Root mean square, over directions, of the Wasserstein-2 distance of two equally large sets of points projected.

    Args:
        a, b: (N, D).
        directions: so many, drawn once for all; evenly spaced in the plane.

    Raises:
        ValueError: for sets of different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"sliced_wasserstein compares sets of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.shape[1] == 2:
        angle = torch.arange(directions) * (math.pi / directions)
        towards = torch.stack([angle.cos(), angle.sin()])
    else:
        towards = torch.randn(a.shape[1], directions, generator=torch.Generator().manual_seed(0))
    towards = (towards / towards.norm(dim=0)).to(a)
    return float(((a @ towards).sort(0).values - (b @ towards).sort(0).values).square().mean().sqrt())
