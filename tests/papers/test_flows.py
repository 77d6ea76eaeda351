"""The coupling flow, and the likelihood task that trains it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.papers.flows import CouplingFlow, base_log_density


def flow(size: int = 3, layers: int = 4) -> CouplingFlow:
    """Away from the identity it starts as."""
    made = CouplingFlow(size, layers, 16, seed=1).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return made


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_inverts_and_counts_volume(size: int) -> None:
    model, z = flow(size), draw(5, size)
    x, stretch = model.to_data(z)
    back, shrink = model.to_base(x)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(shrink, -stretch, rtol=0, atol=1e-10)
    for i in range(5):
        jacobian = torch.func.jacrev(lambda v: model.to_data(v[None])[0][0])(z[i])
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(stretch[i].item(), abs=1e-10)


def test_integrates_to_1() -> None:
    axis = torch.linspace(-30, 30, 601, dtype=torch.float64)
    with torch.no_grad():
        total = flow(2, 2)(torch.cartesian_prod(axis, axis)).exp().sum() * 0.1**2
    assert total.item() == pytest.approx(1, abs=1e-3)


def test_samples_come_with_their_density() -> None:
    model = flow()
    x, log_density = model.sample(6, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), log_density, rtol=0, atol=1e-9)


def test_starts_as_the_base() -> None:
    x = draw(4, 3)
    assert torch.equal(CouplingFlow(3).double()(x), base_log_density(x))
    wanted = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    torch.testing.assert_close(base_log_density(x), wanted.log_prob(x))  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="at least 2 coordinates, got 1"):
        CouplingFlow(1)


def test_in_low_precision() -> None:
    made = CouplingFlow(3).bfloat16()
    x, log_density = made.sample(4)
    assert x.dtype == log_density.dtype == made(x).dtype == torch.bfloat16


def test_learns_a_bent_density() -> None:
    """x1 ~ N(0, 1), x2 = x1^2 / 2 + 0.3 N(0, 1): the entropy is known, and no density does better on average."""
    entropy = math.log(2 * math.pi * math.e) + math.log(0.3)
    g, model = torch.Generator().manual_seed(0), CouplingFlow(2, 4)
    recipe = wp.Recipe().attach(model, wp.Likelihood())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(250):
        x = torch.randn(128, 2, generator=g)
        x[:, 1] = x[:, 0] ** 2 / 2 + 0.3 * x[:, 1]
        losses.append(recipe.step({"x": x}, optimizer)["task"].item())
    late = sum(losses[-100:]) / 100
    noise = 1 / math.sqrt(100 * 128)  # of the mean log-density, whose variance is D / 2 = 1
    assert entropy - 5 * noise < late < entropy + 0.3
    assert late < losses[0] - 0.5


def test_conditional_densities_and_bad_models() -> None:
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return base_log_density(x - self.net(y))

    task = wp.Likelihood(condition="y")
    assert repr(task) == "Likelihood(condition='y')"
    model, batch = Regression(), {"x": torch.randn(8, 1), "y": torch.randn(8, 2)}
    recipe = wp.Recipe().attach(model, task, example=batch)
    terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.0))
    wanted = -base_log_density(batch["x"] - model.net(batch["y"])).mean()
    torch.testing.assert_close(terms["task"], wanted.detach())
    with pytest.raises(ValueError, match=r"one log-density per sample, shape \(8,\), got \(8, 1\)"):
        wp.Likelihood().forward(nn.Linear(1, 1), batch)
