"""Diffusion in the plane: the best denoiser against Tweedie's formula, and the net's training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from wellposed.papers.denoisers import (
    Mixture,
    clean_error,
    ring,
    sliced_wasserstein,
    trained,
)
from wellposed.tasks import Denoise


def points(rows: int = 50, width: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_best_estimate_is_tweedies() -> None:
    """E[x | x_t] = (x_t + sigma^2 grad log p(x_t)) / alpha."""
    data = Mixture(torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.5, -1.0]], dtype=torch.float64), 0.3)
    alpha, sigma = torch.tensor([[0.8]]).double(), torch.tensor([[0.6]]).double()
    x_t = points(20).requires_grad_()
    total = (alpha * data.std) ** 2 + sigma**2
    log_p = (-(x_t[:, None] - alpha * data.means).square().sum(-1) / (2 * total)).logsumexp(1)
    (score,) = torch.autograd.grad(log_p.sum(), x_t)
    wanted = (x_t + sigma**2 * score) / alpha
    torch.testing.assert_close(
        data.clean(x_t, alpha.expand(20, 1), sigma.expand(20, 1)), wanted, rtol=1e-10, atol=1e-12
    )


def test_draws_have_their_moments() -> None:
    x = ring(radius=2.0, std=0.1).draw(20_000, torch.Generator().manual_seed(0))
    assert x.mean(0).abs().max() < 5 * math.sqrt(2.01 / 20_000)
    assert float(x.square().sum(1).mean()) == pytest.approx(4 + 2 * 0.01, rel=0.005)


class Best(nn.Module):
    """The best denoiser itself, which predicts the clean sample."""

    def __init__(self, task: Denoise, data: Mixture) -> None:
        super().__init__()
        self.task, self.data = task, data

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.task.levels(t, x_t)
        return self.data.clean(x_t, alpha, sigma) + torch.tensor([0.3, 0.4]) * (t == 3)[:, None]


def test_error_of_the_best_denoiser_is_what_was_added() -> None:
    task = Denoise("x0", steps=6)
    found = clean_error(Best(task, ring()), task, ring(), seed=0)
    torch.testing.assert_close(found, torch.tensor([0, 0, 0, 0.25, 0, 0]).double(), rtol=1e-5, atol=1e-8)


def test_a_shift_is_its_length_in_every_direction() -> None:
    """Projected shifts are d cos: root mean square |d| / sqrt 2 in the plane."""
    assert sliced_wasserstein(points(), points() + torch.tensor([3.0, 4.0])) == pytest.approx(5 / math.sqrt(2))
    assert sliced_wasserstein(points(width=1), points(width=1) - 2) == pytest.approx(2)
    assert sliced_wasserstein(points(width=5), points(width=5).flip(0)) < 1e-15
    with pytest.raises(ValueError, match="sets of one shape"):
        sliced_wasserstein(points(), points(7))


def test_the_net_learns_and_is_a_function_of_its_seed() -> None:
    task = Denoise(steps=20)
    short, again, longer = (trained(task, ring().draw, 1, updates=n) for n in (5, 5, 150))
    assert torch.equal(short.rest[0].weight, again.rest[0].weight)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(2)
    batch = task.draw(ring().draw(500, g), g)
    assert (
        task.loss(task.forward(longer, batch), batch).mean() < 0.6 * task.loss(task.forward(short, batch), batch).mean()
    )
    x, t = batch["x"], batch["t"]
    torch.testing.assert_close(longer.rest(longer.hidden(x, t)), longer(x, t))
