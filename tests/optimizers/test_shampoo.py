"""Shampoo."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.optimizers.shampoo import Graft, Root, Shampoo, _blocks, _merged, matrix_inverse_root


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(n: int, condition: float) -> Tensor:
    q = torch.linalg.qr(draw(n, n)).Q
    return q * torch.logspace(0, np.log10(condition), n, dtype=torch.float64) @ q.T


# ---- roots
@pytest.mark.parametrize("root", ["eigh", "newton"])
@pytest.mark.parametrize("p", [1, 2, 4, 6])
def test_roots_of_full_rank_matrices(root: Root, p: int) -> None:
    a = torch.stack([positive(8, 1e4), 1e-6 * positive(8, 10)])
    found = matrix_inverse_root(a, p, 1e-15, root)
    residual = torch.linalg.matrix_power(found, p) @ a - torch.eye(8)
    assert residual.abs().max() < 1e-9  # condition 1e4 times float64's eps, with room
    torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-9)


@pytest.mark.parametrize("root", ["eigh", "newton"])
def test_ridge_is_relative_and_zeros_give_the_identity(root: Root) -> None:
    g = draw(8, 2) * torch.tensor([1.0, 0.5])
    a = torch.stack([g @ g.T, 1e8 * g @ g.T, torch.zeros(8, 8, dtype=torch.float64)])
    found = matrix_inverse_root(a, 4, 1e-4, root)
    top = torch.linalg.eigvalsh(a[0])[-1]
    expected = matrix_inverse_root(a[0] + 1e-4 * top * torch.eye(8), 4, 1e-15)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[1], expected / 100, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found[2], torch.eye(8, dtype=torch.float64))


def test_float32_matrices_are_rooted_in_float64() -> None:
    a = positive(16, 1e4).float()
    found = matrix_inverse_root(a, 4, 1e-12)
    exact = matrix_inverse_root(a.double(), 4, 1e-12)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-7)


# ---- shapes
def test_axes_are_merged_and_cut() -> None:
    assert _merged(torch.Size([4, 6]), 64) == [4, 6]
    assert _merged(torch.Size([16, 32, 3, 3]), 64) == [16, 32, 9]
    assert _merged(torch.Size([64, 3, 3, 3]), 64) == [64, 27]
    assert _merged(torch.Size([1, 7, 1]), 64) == [7]
    assert _merged(torch.Size([]), 64) == []
    shapes = [tuple(b.shape) for b in _blocks(torch.zeros(10, 5), 4)]
    assert shapes == [(4, 3), (4, 2), (4, 3), (4, 2), (2, 3), (2, 2)]


# ---- the step
def power(a: np.ndarray, exponent: float, epsilon: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(a)
    values = np.maximum(values, 0) + epsilon * values.max()
    return np.asarray((vectors * values**exponent) @ vectors.T)


def by_hand(w: Tensor, grads: list[Tensor], every: int, graft: Graft, beta: float) -> np.ndarray:
    """One matrix in one block, in plain numpy."""
    theta, lr, decay, b1, eps = w.numpy().copy(), 0.1, 0.05, 0.8, 1e-6
    left, right, squares, momentum = 0.0, 0.0, 0.0, np.zeros_like(theta)
    new = 1.0 if beta == 1 else 1 - beta
    for t, grad in enumerate(grads):
        g = grad.numpy()
        left, right = beta * left + new * g @ g.T, beta * right + new * g.T @ g
        fix = 1.0 if beta == 1 else 1 - beta ** (t + 1)
        if t % every == 0:
            roots = power(np.asarray(left) / fix, -1 / 4, eps), power(np.asarray(right) / fix, -1 / 4, eps)
        update = roots[0] @ g @ roots[1]
        memory = 1.0 if graft == "adagrad" else 0.999 if beta == 1 else beta
        squares = memory * squares + (1.0 if memory == 1 else 1 - memory) * g * g
        corrected = squares / (1.0 if memory == 1 else 1 - memory ** (t + 1))
        target = {"none": update, "sgd": g}.get(graft, g / (np.sqrt(corrected) + 1e-10))
        update = update * np.linalg.norm(target) / np.linalg.norm(update)
        momentum = b1 * momentum + update
        theta = (1 - lr * decay) * theta - lr * momentum
    return theta


@pytest.mark.parametrize("graft", ["none", "sgd", "adagrad", "rmsprop"])
@pytest.mark.parametrize(("every", "beta"), [(1, 1.0), (3, 0.9)])
def test_value_against_numpy(graft: Graft, every: int, beta: float) -> None:
    w, grads = draw(4, 6), [draw(4, 6, seed=s) for s in range(1, 6)]
    p = nn.Parameter(w.clone())
    optimizer = Shampoo([p], 0.1, (0.8, beta), weight_decay=0.05, root_every=every, graft=graft)
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.as_tensor(by_hand(w, grads, every, graft, beta)), rtol=1e-9, atol=1e-9)


def test_first_step_orthogonalises_the_gradient() -> None:
    """With G = U S V^T of full rank, (G G^T)^(-1/4) G (G^T G)^(-1/4) = U V^T."""
    g = draw(5, 5)
    p = nn.Parameter(torch.zeros(5, 5, dtype=torch.float64))
    p.grad = g
    Shampoo([p], 1.0, (0.0, 1.0), 1e-14, graft="none").step()
    u, _, v = torch.linalg.svd(g)
    torch.testing.assert_close(p.detach(), -u @ v, rtol=0, atol=1e-7)


def test_blocks_are_matrices_of_their_own() -> None:
    g = draw(6, 5)
    p = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
    p.grad = g
    Shampoo([p], 1.0, (0.0, 1.0), 1e-10, graft="none", block_size=3).step()
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 3), slice(3, 5)):
            q = nn.Parameter(torch.zeros_like(g[rows, columns]))
            q.grad = g[rows, columns].clone()
            Shampoo([q], 1.0, (0.0, 1.0), 1e-10, graft="none").step()
            torch.testing.assert_close(p.detach()[rows, columns], q.detach())


def test_kernels_of_order_three() -> None:
    """No axes merged: exponent -1/6 on each of three axes."""
    g, numbers = draw(4, 5, 6), {}
    p = nn.Parameter(torch.zeros(4, 5, 6, dtype=torch.float64))
    p.grad = g
    Shampoo([p], 1.0, (0.0, 1.0), graft="none", block_size=6).step()
    for dim, letters in enumerate(["iab,jab->ij", "aib,ajb->ij", "abi,abj->ij"]):
        numbers[dim] = power(np.einsum(letters, g.numpy(), g.numpy()), -1 / 6, 1e-6)
    expected = np.einsum("abc,ai,bj,ck->ijk", g.numpy(), numbers[0], numbers[1], numbers[2])
    torch.testing.assert_close(-p.detach(), torch.as_tensor(expected))


def test_vectors_get_adagrad() -> None:
    one, other = (nn.Parameter(draw(7)) for _ in range(2))
    ours, theirs = Shampoo([one], 0.1, (0.0, 1.0), graft="adagrad"), torch.optim.Adagrad([other], 0.1)
    for s in range(4):
        one.grad, other.grad = draw(7, seed=s), draw(7, seed=s)
        ours.step()
        theirs.step()
    torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-9, atol=0)


# ---- conventions of torch.optim
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x).float(), torch.arange(len(x)) % 3)
            torch.autograd.backward(loss)
            return loss

        loss: Any = optimizer.step(closure)  # type: ignore[arg-type]
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(dtype: torch.dtype) -> None:
    x = draw(12, 1, 8, 8).to(dtype)
    straight, first = net().to(dtype), net().to(dtype)
    train(straight, Shampoo(straight.parameters(), 0.01, root_every=3), x, 6)
    optimizer = Shampoo(first.parameters(), 0.01, root_every=3)
    train(first, optimizer, x, 4)
    second = copy.deepcopy(first)
    resumed = Shampoo(second.parameters(), 1.0, root_every=7)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(second, resumed, x, 2)
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_groups_empty_gradients_frozen_and_tied_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    kept = [p.detach().clone() for p in model.parameters()]
    optimizer = Shampoo(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": [model[2].weight, *model[3].parameters()]}]
    )
    torch.autograd.backward(model[:3](draw(4, 3).float()).sum())
    optimizer.step()  # the last layer has no gradients
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert not torch.equal(model.get_parameter("0.weight"), kept[0])
    optimizer.add_param_group({"params": [model[1].bias], "graft": "none"})
    assert optimizer.param_groups[-1]["root_every"] == 10


def test_maximize_is_the_other_way() -> None:
    one, other = (nn.Parameter(draw(3, 4)) for _ in range(2))
    one.grad, other.grad = draw(3, 4, seed=1), -draw(3, 4, seed=1)
    Shampoo([one], 0.1).step()
    Shampoo([other], 0.1, maximize=True).step()
    assert torch.equal(one, other)


def test_gradient_of_zero_moves_nothing() -> None:
    p = nn.Parameter(draw(3, 4))
    p.grad = torch.zeros_like(p)
    kept = p.detach().clone()
    Shampoo([p], 0.1).step()
    assert torch.equal(p, kept)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": -1.0}, "lr of at least 0"), ({"betas": (1.0, 0.9)}, "betas in"), ({"epsilon": 0.0}, "epsilon above 0"),
        ({"root_every": 0}, "root_every of at least 1"), ({"graft": "adam"}, "graft among"),
        ({"root": "svd"}, "root among"),
    ],
)  # fmt: skip
def test_what_it_refuses(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"Shampoo needs {sentence}"):
        Shampoo([nn.Parameter(torch.zeros(2))], **settings)


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense real gradients"):
        Shampoo(table.parameters()).step()


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains_in_a_recipe(kind: str) -> None:
    model, x = net(), draw(12, 1, 8, 8).float()
    if kind == "transformer":
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
        x = draw(12, 5, 8).float()
    recipe = wp.Recipe(wp.SAM()).attach(model, wp.Classify(classes=3))
    optimizer = Shampoo(model.parameters(), 0.003, root_every=2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    terms = []
    for _ in range(15):
        terms.append(recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)["task"])
        schedule.step()
    assert terms[-1] < 0.7 * terms[0]
