"""AdaHessian."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.optimizers.adahessian import AdaHessian, Average, averaged_curvature
from wellposed.parts.curvature import rademacher, twice_differentiable


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x).float(), torch.arange(len(x)) % 3)


# ---- curvature
@pytest.mark.parametrize("average", ["kernel", "row", "none"])
@pytest.mark.parametrize("shape", [(3, 2, 2, 4), (3, 2, 5), (3, 4), (5,)])
def test_averages_by_loops(average: Average, shape: tuple[int, ...]) -> None:
    d = draw(*shape)
    found, axes = averaged_curvature(d, average), {"kernel": 2, "row": 1, "none": len(shape)}[average]
    for index in np.ndindex(*shape):
        block = d[index[:axes]].abs()
        assert found[index].item() == pytest.approx(float(block.mean()))


def test_estimate_against_the_dense_hessian() -> None:
    """D = z * (H z), the same z from seed and count; summed over losses with the same z."""
    w = nn.Parameter(draw(5))
    x = draw(7, 5, seed=1)
    optimizer = AdaHessian([w], samples=2, seed=3)
    t = torch.tanh(x @ w.detach())
    dense = x.T @ torch.diag(2 * (1 - t * t) * (1 - 3 * t * t)) @ x  # of sum tanh(x w)^2
    for part in (x[:3], x[3:]):
        optimizer.backward(torch.tanh(part @ w).square().sum())
    g = torch.Generator().manual_seed(zlib.crc32(repr((3, 0)).encode()))
    signs = [rademacher({"0": w}, g)["0"] for _ in range(2)]
    expected = sum(z * (dense @ z) for z in signs) / 2
    torch.testing.assert_close(optimizer.curvature[w], torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


def test_expected_square_is_the_row_norm_not_the_diagonal() -> None:
    """E[(z * H z)_i^2] = sum_j H_ij^2."""
    a = draw(4, 4)
    h, w = a + a.T, nn.Parameter(torch.zeros(4, dtype=torch.float64))
    squares = []
    for seed in range(500):
        optimizer = AdaHessian([w], seed=seed)
        optimizer.backward(0.5 * w @ h @ w)
        squares.append(optimizer.curvature[w].square())
        w.grad = None
    found = torch.stack(squares)
    standard_error = found.std(0) / 500**0.5
    assert ((found.mean(0) - h.square().sum(1)).abs() < 5 * standard_error).all()
    assert (found.mean(0) > 1.1 * h.diagonal().square()).all()


# ---- the step
def by_hand(steps: int, power: float, every: int, shape: tuple[int, ...]) -> tuple[np.ndarray, Tensor, Tensor]:
    """On a quadratic with a Hessian that is diagonal and depends on the step's number: Hutchinson is exact."""
    curvatures, start = draw(steps, *shape, seed=4).abs() + 0.1, draw(*shape, seed=5)
    theta, m, v, d = start.numpy().copy(), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for t in range(steps):
        h = curvatures[t].numpy()
        g = h * theta
        if t % every == 0:
            d = np.broadcast_to(h.mean((2, 3), keepdims=True), shape) if len(shape) == 4 else h
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * d * d
        bottom = (np.sqrt(v / (1 - 0.98 ** (t + 1)))) ** power + 1e-3
        theta = (1 - 0.05 * 0.1) * theta - 0.05 * m / (1 - 0.9 ** (t + 1)) / bottom
    return theta, curvatures, start


@pytest.mark.parametrize("shape", [(6,), (2, 3, 2, 2)])
@pytest.mark.parametrize(("power", "every"), [(1.0, 1), (0.5, 3)])
def test_value_against_numpy(shape: tuple[int, ...], power: float, every: int) -> None:
    expected, curvatures, start = by_hand(5, power, every, shape)
    p = nn.Parameter(start.clone())
    optimizer = AdaHessian([p], 0.05, (0.9, 0.98), 1e-3, 0.1, power=power, every=every)
    for h in curvatures:

        def closure(h: Tensor = h) -> Tensor:
            optimizer.zero_grad()
            loss = 0.5 * (h * p * p).sum()
            optimizer.backward(loss)
            return loss

        optimizer.step(closure)
    torch.testing.assert_close(p.detach(), torch.as_tensor(expected), rtol=1e-10, atol=1e-12)


def test_rate_one_is_newton_on_the_axes() -> None:
    p = nn.Parameter(draw(6))
    optimizer = AdaHessian([p], 1.0, (0.0, 0.0), eps=0.0)
    optimizer.backward(0.5 * (torch.logspace(0, 4, 6) * p * p).sum())
    optimizer.step()
    assert p.abs().max() < 1e-14


def test_power_zero_is_momentum() -> None:
    one, other = (nn.Parameter(draw(4)) for _ in range(2))
    optimizer, mean = AdaHessian([one], 0.1, eps=0.0, power=0.0), torch.zeros(4, dtype=torch.float64)
    for t in range(1, 5):
        optimizer.zero_grad()
        optimizer.backward(one.pow(4).sum())
        optimizer.step()
        mean = 0.9 * mean + 0.1 * 4 * other.detach().pow(3)
        other.data -= 0.1 * mean / (1 - 0.9**t)
    torch.testing.assert_close(one, other)


def test_backward_gives_the_ordinary_gradient_and_hooks() -> None:
    model, x = net(), draw(12, 1, 8, 8).float()
    seen: list[Tensor] = []
    plain = copy.deepcopy(model)
    model.get_parameter("4.weight").register_post_accumulate_grad_hook(seen.append)  # type: ignore[no-untyped-call]
    AdaHessian(model.parameters()).backward(loss_of(model, x))
    torch.autograd.backward(loss_of(plain, x))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert len(seen) == 1


def test_gradients_with_a_graph_do_as_well() -> None:
    models, x = [net(), net()], draw(12, 1, 8, 8).float()
    optimizers = [AdaHessian(m.parameters()) for m in models]
    optimizers[0].backward(loss_of(models[0], x))
    params = list(models[1].parameters())
    for p, g in zip(params, torch.autograd.grad(loss_of(models[1], x), params, create_graph=True), strict=True):
        p.grad = g
    for optimizer in optimizers:
        optimizer.step()
    for a, b in zip(*[m.parameters() for m in models], strict=True):
        torch.testing.assert_close(a, b)
    assert not any(p.grad is not None and p.grad.requires_grad for p in params)


# ---- conventions of torch.optim
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(dtype: torch.dtype) -> None:
    x = draw(12, 1, 8, 8).to(dtype)

    def train(model: nn.Module, optimizer: AdaHessian, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            optimizer.backward(loss_of(model, x))
            optimizer.step()

    straight, first = net().to(dtype), net().to(dtype)
    train(straight, AdaHessian(straight.parameters(), 0.01, every=2), 5)
    optimizer = AdaHessian(first.parameters(), 0.01, every=2)
    train(first, optimizer, 3)
    second = copy.deepcopy(first)
    resumed = AdaHessian(second.parameters(), 1.0, every=2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(second, resumed, 2)
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_groups_unused_frozen_and_tied_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[4].weight.requires_grad_(False)
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = AdaHessian([
        {"params": model[0].parameters(), "lr": 0.0},
        {"params": [model[2].bias, *model[4].parameters(), *model[5].parameters()]},
    ])  # fmt: skip
    optimizer.backward(model[:5](draw(4, 3).float()).square().sum())
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, kept[n])}
    assert moved == {"2.bias", "4.bias"}


def test_what_it_refuses() -> None:
    p = nn.Parameter(draw(3))
    optimizer = AdaHessian([p])
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"needs the curvature: call optimizer.backward\(loss\)"):
        optimizer.step()
    table = nn.Embedding(4, 3, sparse=True)
    with pytest.raises(RuntimeError, match="dense real gradients"):
        AdaHessian(table.parameters()).backward(table(torch.tensor([1])).square().sum())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"lr": -1.0}, "lr of at least 0"), ({"betas": (0.9, 1.0)}, "betas in"), ({"power": 2.0}, "power in"),
        ({"average": "conv"}, "average among"), ({"samples": 0}, "samples of"), ({"every": 0}, "every of"),
    ]  # fmt: skip
    for settings, sentence in cases:
        with pytest.raises(ValueError, match=f"AdaHessian needs {sentence}"):
            AdaHessian([p], **settings)


# ---- inside a recipe
def test_microbatches_equal_the_large_batch() -> None:
    weights = []
    for split in (1, 3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        recipe = wp.Recipe(wp.L2(strength=0.1)).attach(model, wp.Classify(classes=3))
        optimizer = AdaHessian(model.parameters(), 0.05)
        batch = {"x": draw(12, 6), "y": torch.arange(12) % 3}
        parts = [
            dict(zip(batch, rows, strict=True)) for rows in zip(*(v.chunk(split) for v in batch.values()), strict=True)
        ]
        for _ in range(3):
            recipe.step(parts, optimizer)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains_in_a_recipe(kind: str) -> None:
    model, x = net(), draw(12, 1, 8, 8).float()
    if kind == "transformer":
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Flatten(), nn.Linear(40, 3)
        )
        x = draw(12, 5, 8).float()
    recipe = wp.Recipe(wp.SAM()).attach(model, wp.Classify(classes=3))
    optimizer = AdaHessian(model.parameters(), 0.01, eps=1e-2)
    with twice_differentiable():
        terms = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)["task"] for _ in range(20)]
    assert terms[-1] < 0.8 * terms[0]


def test_a_scaler_is_refused() -> None:
    model = nn.Linear(6, 3)
    recipe = wp.Recipe().attach(model, wp.Classify(classes=3), scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(wp.RecipeError, match="AdaHessian differentiates the loss itself"):
        recipe.step({"x": torch.randn(4, 6), "y": torch.arange(4) % 3}, AdaHessian(model.parameters()))
