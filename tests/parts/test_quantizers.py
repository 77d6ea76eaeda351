"""Quantisers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wellposed.parts.quantizers import absmax_range, dequantized, minmax_range, quantize, straight_through


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_straight_through_is_exact_forward_and_identity_backward() -> None:
    x = (1e8 * draw(50).float()).requires_grad_()
    value = torch.linspace(-1e-8, 1e-8, 50)
    out = straight_through(value, x)
    assert torch.equal(out, value)  # x + (value - x) would lose every bit of it
    [grad] = torch.autograd.grad((out * torch.arange(50)).sum(), x)
    assert torch.equal(grad, torch.arange(50).float())


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_nearest_of_the_grid_by_search(bits: int) -> None:
    x, low, high = draw(40), torch.tensor(-1.0, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    grid = torch.linspace(-1.0, 0.7, 2**bits, dtype=torch.float64)
    nearest = grid[(x[:, None] - grid).abs().argmin(1)]
    torch.testing.assert_close(quantize(x, low, high, bits), nearest, rtol=0, atol=1e-14)


def test_gradients_of_the_learned_step_size_quantiser() -> None:
    """Of x 1 inside and 0 outside; of the ends 1 where clipped, and inside the rounding error over the range."""
    x = torch.tensor([-3.0, 0.3, 0.55, 4.0], dtype=torch.float64, requires_grad=True)
    low = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    high = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    out = quantize(x, low, high, 2)  # grid -1, 0, 1, 2
    assert out.tolist() == [-1, 0, 1, 2]
    found = [torch.autograd.grad(out[i], [x, low, high], retain_graph=True) for i in range(4)]
    assert [g[0][i].item() for i, g in enumerate(found)] == [0, 1, 1, 0]
    # k = (x - low) / step and out = round(k) step + low: d/dlow = (k - round(k)) / 3, d/dhigh = (round(k) - k) / 3
    k = torch.tensor([0.0, 1.3, 1.55, 3.0])
    r = k.round()
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0])
    wanted_low = torch.where(inside > 0, (k - r) / 3, torch.tensor([1.0, 0, 0, 0]))
    wanted_high = torch.where(inside > 0, (r - k) / 3, torch.tensor([0.0, 0, 0, 1.0]))
    torch.testing.assert_close(torch.stack([g[1] for g in found]), wanted_low.double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.stack([g[2] for g in found]), wanted_high.double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_tensor_on_its_own_grid(symmetric: bool) -> None:
    x = draw(6, 7).requires_grad_()
    out = dequantized(x, 4, symmetric)
    low, high = (absmax_range if symmetric else minmax_range)(x)
    assert (out - x).abs().max() <= (high - low) / 15 / 2 * (1 + 1e-12)
    assert len(set(out.flatten().tolist())) <= 16
    if not symmetric:
        assert out.min() == low  # the grid starts at the smallest value
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.ones_like(x))


def test_a_constant_tensor_survives() -> None:
    assert torch.equal(dequantized(torch.zeros(3), 8), torch.zeros(3))
    assert torch.equal(dequantized(torch.full((3,), 2.0), 8), torch.full((3,), 2.0))
