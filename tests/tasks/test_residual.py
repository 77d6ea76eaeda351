"""Residuals: derivatives of known functions, and a Poisson problem solved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from wellposed import Recipe
from wellposed.tasks import Residual, laplacian


def poisson(u: nn.Module, x: Tensor) -> Tensor:
    """-u'' = pi^2 sin(pi x), whose solution with u(0) = u(1) = 0 is sin(pi x)."""
    return -laplacian(u, x) - math.pi**2 * torch.sin(math.pi * x).squeeze(-1)


def edge(u: nn.Module, x: Tensor) -> Tensor:
    return u(x).squeeze(-1)


def test_laplacian_of_known_functions() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(laplacian(lambda p: p.square().sum(1), x), torch.full((6,), 6.0).double())
    found = laplacian(lambda p: torch.sin(p[:, :1]) * p[:, 1:2] ** 3, x)
    torch.testing.assert_close(found, -torch.sin(x[:, 0]) * x[:, 1] ** 3 + torch.sin(x[:, 0]) * 6 * x[:, 1])


def test_the_solution_has_no_residual() -> None:
    class Solution(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(math.pi * x)

    task = Residual(poisson, {"edge": (edge, 1.0)})
    batch = {"x": torch.rand(10, 1).double(), "edge": torch.tensor([[0.0], [1.0]]).double()}
    assert task.loss(task.forward(Solution(), batch), batch).max() < 1e-20


def test_boundaries_add_their_weighted_means() -> None:
    task = Residual(poisson, {"left": (edge, 2.0), "right": (edge, 0.0)})
    out = {"residual": torch.tensor([1.0, 2.0]), "left": torch.tensor([1.0, 3.0, 5.0]), "right": torch.tensor([9.0])}
    torch.testing.assert_close(task.loss(out, {}), torch.tensor([1.0, 4.0]) + 2 * 35 / 3)


def test_poisson_is_solved() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
    recipe = Recipe().attach(model, Residual(poisson, {"edge": (edge, 100.0)}))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    batch = {"x": torch.linspace(0, 1, 64).view(-1, 1), "edge": torch.tensor([[0.0], [1.0]])}
    for _ in range(800):
        recipe.step(batch, optimizer)
        schedule.step()
    x = torch.rand(200, 1)
    with torch.no_grad():
        assert (model(x) - torch.sin(math.pi * x)).abs().max() < 0.01


def test_residuals_can_be_had_without_gradients_switched_on() -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    task, batch = Residual(poisson), {"x": torch.rand(5, 1)}
    with torch.no_grad():
        found = task.forward(model, batch)["residual"]
    assert torch.equal(found, task.forward(model, batch)["residual"])


def test_a_residual_that_is_a_column_is_refused() -> None:
    task = Residual(lambda u, x: u(x))
    with pytest.raises(ValueError, match=r"one value per point, shape \(5,\), got \(5, 1\)"):
        task.forward(nn.Linear(1, 1), {"x": torch.rand(5, 1)})


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="needs another name"):
        Residual(poisson, {"x": (edge, 1.0)})
    with pytest.raises(ValueError, match="at least 0"):
        Residual(poisson, {"edge": (edge, -1.0)})
