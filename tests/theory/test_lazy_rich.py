"""Lazy and rich training: scaled models at their start, the kernel by loops, the gap by hand, errors by sampling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from wellposed.core.card import card
from wellposed.theory.lazy_rich import (
    LazyScaling,
    PolynomialStudent,
    grokking_gap,
    kernel_alignment,
    polynomial_error,
)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_training_starts_at_zero_and_the_copy_stays() -> None:
    assert card(LazyScaling).formula
    x = torch.randn(4, 1, 6, 6, generator=generator())
    scaled = LazyScaling(conv_net(), 3.0)
    assert not scaled.train()(x).any()
    assert not scaled.eval()(x).any()
    start = {n: p.clone() for n, p in scaled.start.named_parameters()}
    optimizer = torch.optim.AdamW(scaled.parameters(), lr=0.01, weight_decay=0.1)
    (scaled(x) - 1).square().mean().mul(scaled.factor).backward()
    optimizer.step()
    assert all(torch.equal(p, start[n]) for n, p in scaled.start.named_parameters())
    assert torch.allclose(scaled(x), 3 * (scaled.model(x) - scaled.start(x)))
    assert scaled(x).abs().min() > 0
    resumed = LazyScaling(conv_net(), 3.0)
    resumed.load_state_dict(scaled.state_dict())
    assert torch.equal(resumed.eval()(x), scaled(x))
    with pytest.raises(ValueError, match="alpha must be above 0"):
        LazyScaling(conv_net(), 0.0)


def test_alpha_changes_no_speed_at_first() -> None:
    """The change of the outputs in the first small step is that of gradient descent on the kernel, whatever alpha."""
    x, y = torch.randn(6, 3, dtype=torch.float64, generator=generator()), torch.ones(6, 1, dtype=torch.float64)
    moved = []
    for alpha in (0.5, 1.0, 20.0):
        torch.manual_seed(0)
        scaled = LazyScaling(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double(), alpha)
        optimizer = torch.optim.SGD(scaled.model.parameters(), lr=1e-6)
        ((scaled(x) - y).square().sum() * scaled.factor).backward()
        optimizer.step()
        moved.append(scaled(x).detach())
    assert torch.allclose(moved[0], moved[1], rtol=1e-4)
    assert torch.allclose(moved[1], moved[2], rtol=1e-4)


def test_alignment_by_loops() -> None:
    model = conv_net().double().train()
    model[4].bias.requires_grad_(False)
    x, y = torch.randn(5, 1, 6, 6, dtype=torch.float64, generator=generator()), torch.arange(10.0).sin().view(5, 2)
    found = kernel_alignment(model, x, y, chunk=2)
    assert model.training
    model.eval()
    params = [p for p in model.parameters() if p.requires_grad]
    kernel = torch.zeros(5, 5, dtype=torch.float64)
    for c in range(2):
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(model(x)[i, c], params)]) for i in range(5)]
        kernel += torch.stack([torch.stack([a @ b for b in rows]) for a in rows])
    middle = torch.eye(5, dtype=torch.float64) - 1 / 5
    kernel, wanted = middle @ kernel @ middle, middle @ (y @ y.T).double() @ middle
    assert float(found) == pytest.approx(float((kernel * wanted).sum() / kernel.norm() / wanted.norm()), rel=1e-6)


def test_extremes_of_alignment() -> None:
    x = torch.randn(20, 4, generator=generator())
    line = nn.Linear(1, 1)
    assert float(kernel_alignment(line, x[:, :1], 2 * x[:, 0] + 3)) == pytest.approx(1, abs=1e-5)
    even = torch.tensor([-1.0, 0.0, 1.0])
    assert float(kernel_alignment(line, even[:, None], even.square())) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="which vary"):
        kernel_alignment(line, x[:, :1], torch.ones(20))
    former = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert 0 < float(kernel_alignment(former, x.view(5, 4, 4), x[:5])) < 1


def test_gap_by_hand() -> None:
    gap = grokking_gap([3, 1, 0.1, 0.0], [3, 3, 2, 0.4], 1.0, times=[10, 20, 100, 2000])
    assert (gap.train, gap.test, gap.censored) == (20, 2000, False)
    assert gap.decades == pytest.approx(2)
    assert tuple(grokking_gap([3, 0.2], [3, 3], 1.0)) == (2, 2, 0.0, True)
    assert grokking_gap([3, 0.2], [3, 2.5], 1.0, test_threshold=2.7).censored is False
    with pytest.raises(ValueError, match="never fell"):
        grokking_gap([3.0], [3.0], 1.0)
    with pytest.raises(ValueError, match="one length"):
        grokking_gap([3.0], [3.0, 2.0], 1.0)


def test_error_of_the_student_by_sampling() -> None:
    g = generator()
    scaled = LazyScaling(PolynomialStudent(6, 10, 0.5, g), 2.0)
    scaled.model.weight.data += torch.randn(10, 6, generator=g) / 2  # type: ignore[operator]
    beta = torch.randn(6, generator=g)

    def sampled(rows: int) -> Tensor:
        x = torch.randn(rows, 6, generator=g) / math.sqrt(6)
        return (scaled(x).detach() - (x @ beta).square() / 2).square()

    errors = sampled(200_000)
    tolerance = 4 * float(errors.std()) / math.sqrt(len(errors))
    assert float(polynomial_error(scaled, beta)) == pytest.approx(float(errors.mean()), abs=tolerance)
