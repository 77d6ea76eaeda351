"""STEP."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.parts.masks import nm_mask
from wellposed.sparsity.step_adam import STEPAdam, nm_groups, variance_settled


def mlp(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype), torch.arange(12) % 3


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x, y = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_dense_phase_is_adam() -> None:
    ours, theirs = mlp(), mlp()
    train(ours, STEPAdam(nm_groups(ours), lr=0.01, switch=100), 8)
    train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.01), 8)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-15)


def test_no_mask_no_freeze_is_adam_throughout() -> None:
    ours, theirs = mlp(), mlp()
    train(ours, STEPAdam(ours.parameters(), lr=0.01, switch=3, freeze=False), 8)
    train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.01), 8)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-15)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_sparse_phase_by_the_formula(decay: float, floor: float) -> None:
    """A single matrix, gradients taken at the pruned weights of a known quadratic."""
    torch.manual_seed(0)
    target, start = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    w = nn.Parameter(start.clone())
    optimizer = STEPAdam([{"params": [w], "n": 2, "m": 4}], lr=0.05, switch=4, decay=decay, floor=floor)
    dense, m, v, denominator = (start.clone(), *[torch.zeros_like(start)] * 3)
    for t in range(1, 10):
        w.grad = w.detach() - target
        optimizer.step()
        mask = nm_mask(dense, 2, 4) if t > 4 else torch.ones_like(dense)
        g = dense * mask - target + decay * (dense - dense * mask)
        m = 0.9 * m + 0.1 * g
        if t <= 4:
            v = 0.999 * v + 0.001 * g * g
            denominator = (v / (1 - 0.999**t)).sqrt() + 1e-8
        if t == 4:
            root = (v / (1 - 0.999**4)).sqrt()
            denominator = torch.maximum(root, floor * root.square().mean().sqrt()) + 1e-8
            dense = dense - 0.05 * (m / (1 - 0.9**4)) / (root + 1e-8)
        else:
            dense = dense - 0.05 * (m / (1 - 0.9**t)) / denominator
        if t >= 4:
            torch.testing.assert_close(w.detach(), dense * nm_mask(dense, 2, 4), rtol=0, atol=1e-13)
            assert (torch.unflatten(w.detach(), 1, (-1, 4)) != 0).sum(-1).eq(2).all()


def test_masks_from_the_first_update_on() -> None:
    w = nn.Parameter(torch.randn(1, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = STEPAdam([{"params": [w], "n": 1, "m": 4}], switch=0, freeze=False)
    w.grad = torch.ones(1, 4)
    optimizer.step()
    assert optimizer.sparse
    assert (w != 0).sum() == 1


def test_changes_of_the_second_moment_follow_the_closed_form() -> None:
    """Under steady Gaussian noise z stays at (1 - beta2) E|g^2 - s^2| = 0.968 (1 - beta2) s^2: it never fades."""
    s, beta2 = 0.1, 0.99
    w = nn.Parameter(torch.zeros(200, 100))
    optimizer = STEPAdam([w], lr=0.0, betas=(0.9, beta2), steps=10_000)
    g = torch.Generator().manual_seed(0)
    for _ in range(500):
        w.grad = s * torch.randn(200, 100, generator=g)
        optimizer.step()
    changes = optimizer.param_groups[0]["changes"]
    assert len(changes) == 100
    expected = 4 / math.sqrt(2 * math.pi * math.e) * (1 - beta2) * s**2  # E|chi^2_1 - 1| = 4 phi(1)
    assert changes.mean().item() == pytest.approx(expected, rel=0.02)  # v itself wavers by 10 % about s^2
    assert not variance_settled(changes, 1e-8)
    assert variance_settled(changes * 1e-5, 1e-8)
    assert variance_settled(torch.tensor([1e-12, 1e-7]), 1e-8, "geometric")
    assert not variance_settled(torch.tensor([1e-12, 1e-7]), 1e-8)


@pytest.mark.parametrize(("scale", "switched"), [(1.0, 50), (1e-4, 10)])
def test_automatic_switch(scale: float, switched: int) -> None:
    """Large gradients switch at half of training, tiny ones as soon as the window is full and a tenth is over."""
    w = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = STEPAdam([{"params": [w], "n": 2, "m": 4}], betas=(0.9, 0.9), steps=100)
    for t in range(60):
        w.grad = scale * torch.randn(4, 4, generator=torch.Generator().manual_seed(t))
        assert optimizer.sparse == (t >= switched)
        optimizer.step()


def test_resumes_exactly_on_both_sides_of_the_switch() -> None:
    for before in (3, 7):
        straight = mlp()
        train(straight, STEPAdam(nm_groups(straight), steps=10, lr=0.01), 10)
        first = mlp()
        optimizer = STEPAdam(nm_groups(first), steps=10, lr=0.01)
        train(first, optimizer, before)
        file = io.BytesIO()
        torch.save([first.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        second = mlp()
        again = STEPAdam(nm_groups(second), steps=10, lr=0.01)
        second.load_state_dict(weights)
        again.load_state_dict(state)
        train(second, again, 10 - before)
        assert torch.equal(flat(straight), flat(second))


def test_conventions_of_optimizers() -> None:
    model = mlp()
    unused = nn.Parameter(torch.ones(3))
    half = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    groups = [*nm_groups(model), {"params": [unused], "lr": 0.5}, {"params": [half], "n": 2, "m": 4}]
    optimizer = STEPAdam(groups, switch=1)
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 1e-3, 0.5, 1e-3]
    x, y = batch()

    def closure() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y) + half.sum() * 0.01
        torch.autograd.backward(loss)
        return float(loss.detach())

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    optimizer.step(closure)
    assert torch.equal(unused, torch.ones(3))
    assert (half != 0).sum() == 8
    assert half.dtype == torch.bfloat16
    copy.deepcopy(optimizer).step()
    half.grad = torch.ones(4, 4, dtype=torch.bfloat16).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


def test_maximize_is_the_gradient_turned_round() -> None:
    values = []
    for sign, maximize in ((1.0, True), (-1.0, False)):
        w = nn.Parameter(torch.ones(2, 4))
        optimizer = STEPAdam([{"params": [w], "n": 2, "m": 4}], switch=1, maximize=maximize)
        for t in range(4):
            w.grad = sign * torch.arange(8.0).view(2, 4) * (t + 1)
            optimizer.step()
        values.append(w.detach())
    assert torch.equal(*values)


def conv() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3), nn.Flatten(), nn.Linear(256, 3)
    ), torch.randn(12, 1, 8, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(12, 5, 8)


@pytest.mark.parametrize("build", [conv, transformer])
def test_sparse_nets(build: Any) -> None:
    torch.manual_seed(0)
    model, x = build()
    groups = nm_groups(model, 1, 4)
    recipe = wp.Recipe().attach(model, wp.Classify(classes=3))
    optimizer = STEPAdam(groups, lr=0.01, switch=10)
    losses = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)["task"] for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    for group in groups[:-1]:
        for w in group["params"]:
            assert (torch.unflatten(w, group["dim"], (-1, 4)) != 0).sum(group["dim"] + 1).eq(1).all()
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="betas in \\[0, 1\\)"):
        STEPAdam([nn.Parameter(torch.ones(2))], betas=(0.9, 1.0), switch=1)
    with pytest.raises(ValueError, match="'auto' with steps="):
        STEPAdam([nn.Parameter(torch.ones(2))])
    with pytest.raises(wp.RecipeError, match="4 divides in the model"):
        nm_groups(nn.Linear(6, 2))
    with pytest.raises(wp.RecipeError, match="8 divides in 2"):
        nm_groups(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), 2, 8, layers=("0", "2"))
