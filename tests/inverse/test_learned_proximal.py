"""A learned proximal network is the proximal operator of the prior that is read off it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wellposed import NotConverged
from wellposed.inverse.learned_proximal import LearnedProximal
from wellposed.parts.convex import InputConvex


def network(inputs: int = 1, seed: int = 0, kernel: int | None = None, strong: float = 0.1) -> LearnedProximal:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        convex = InputConvex(inputs, (16, 8), kernel=kernel, strong=strong, sharpness=4.0).double()
        with torch.no_grad():
            for p in convex.parameters():
                p.add_(0.5 * torch.randn_like(p))
    return LearnedProximal(convex)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_proximal_operator_of_its_prior(seed: int) -> None:
    """argmin_u (u - y)^2 / 2 + phi(u), looked for on a grid of u."""
    prox = network(seed=seed)
    y = torch.linspace(-3, 3, 13, dtype=torch.float64).unsqueeze(1)
    image = prox(y).detach()
    low, high = float(image.min()) - 0.5, float(image.max()) + 0.5
    u = torch.linspace(low, high, 2001, dtype=torch.float64).unsqueeze(1)
    value = (u.T - y).square() / 2 + prox.prior(u)
    found = u[value.argmin(1)]
    assert float((found - image).abs().max()) <= (high - low) / 2000  # one place of the grid


def test_the_priors_slope_leads_back() -> None:
    """grad phi(x) = y - x, here by central differences."""
    prox = network(4)
    x = prox(torch.randn(5, 4, dtype=torch.float64)).detach()
    slope = prox.invert(x, tol=1e-12).point - x
    step = 1e-4
    for i in range(4):
        moved = step * torch.eye(4, dtype=torch.float64)[i]
        numeric = (prox.prior(x + moved, tol=1e-10) - prox.prior(x - moved, tol=1e-10)) / (2 * step)
        torch.testing.assert_close(numeric, slope[:, i], rtol=1e-4, atol=1e-5)


def test_images() -> None:
    prox = network(2, kernel=3)
    y = torch.randn(3, 2, 6, 5, dtype=torch.float64)
    x = prox(y).detach()
    found = prox.invert(x, tol=1e-8)
    assert found.converged.all()
    torch.testing.assert_close(found.point, y, rtol=0, atol=1e-6)
    torch.testing.assert_close(prox.prior(x, tol=1e-8), prox.prior_at(y, x), rtol=0, atol=1e-6)
    torch.testing.assert_close(prox.potential(y), prox.convex(y))


def test_what_lies_outside_the_range_has_no_prior() -> None:
    prox = network(strong=0.0)
    with torch.no_grad():
        reach = prox(torch.tensor([[1e6]], dtype=torch.float64))
    x = torch.cat([reach + 1, prox(torch.tensor([[0.1]], dtype=torch.float64)).detach()])
    with pytest.raises(NotConverged, match="1 of 2 samples have no y with"):
        prox.prior(x, iterations=40)
    assert prox.invert(x, iterations=40).converged.tolist() == [False, True]


def test_autocast_and_inference_mode_do_not_spoil_the_prior() -> None:
    prox = network(2).float()
    x = prox(torch.randn(4, 2)).detach()
    plain = prox.prior(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prox.prior(x), plain)
    assert prox.prior(x.bfloat16()).dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(prox.prior(x), plain)
        assert prox.prior(prox(torch.randn(4, 2))).isfinite().all()


def test_the_graph_reaches_the_weights_and_not_the_prior() -> None:
    prox = network(3)
    y = torch.randn(4, 3, dtype=torch.float64)
    prox(y).square().sum().backward()
    assert all(p.grad is not None for p in prox.parameters())
    value: Tensor = prox.prior(y)
    assert not value.requires_grad
