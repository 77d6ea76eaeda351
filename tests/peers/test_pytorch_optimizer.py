"""Optimizers against pytorch_optimizer, an independent implementation."""

from __future__ import annotations

import pytest
import pytorch_optimizer as peer
import torch
from torch import Tensor, nn

from wellposed import SAM, Classify, Recipe
from wellposed.optimizers.adahessian import AdaHessian
from wellposed.optimizers.shampoo import Shampoo


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batches(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 6, generator=g, dtype=torch.float64), torch.randint(3, (16,), generator=g))
        for _ in range(count)
    ]


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam(adaptive: bool) -> None:
    ours, theirs = net(), net()
    recipe = Recipe(SAM(rho=0.1, adaptive=adaptive, eta=0.0)).attach(ours, Classify(3))
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    sam = peer.SAM(theirs.parameters(), torch.optim.SGD, rho=0.1, adaptive=adaptive, lr=0.1)
    for x, y in batches():
        recipe.step({"x": x, "y": y}, optimizer)
        nn.functional.cross_entropy(theirs(x), y).backward()
        sam.first_step(zero_grad=True)
        nn.functional.cross_entropy(theirs(x), y).backward()
        sam.second_step(zero_grad=True)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-9)  # its 1e-12 beside the norm


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")  # its way
def test_adahessian_where_the_estimate_has_no_noise() -> None:
    """Of a diagonal Hessian random signs give the diagonal itself, so that both see the same curvature."""
    scale = torch.logspace(-1, 1, 6, dtype=torch.float64)
    ours, theirs = (nn.Parameter(torch.ones(6, dtype=torch.float64)) for _ in range(2))
    mine = AdaHessian([ours], lr=0.1, eps=1e-4, weight_decay=0.01, average="none")
    other = peer.AdaHessian([theirs], lr=0.1, eps=1e-4, weight_decay=0.01)
    for _ in range(5):
        mine.zero_grad()
        mine.backward((scale * ours**4).sum())
        mine.step()
        other.zero_grad()
        (scale * theirs**4).sum().backward(create_graph=True)
        other.step()
        theirs.grad = None
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)


def test_shampoo_with_sums_and_without_grafting() -> None:
    """Of its two the scalable one: the other takes the root of order k in place of 2 k."""
    ours, theirs = (nn.Parameter(torch.eye(4, dtype=torch.float64)) for _ in range(2))
    mine = Shampoo([ours], lr=0.1, betas=(0.9, 1.0), epsilon=1e-14, root_every=1, graft="none")
    other = peer.ScalableShampoo(
        [theirs], lr=0.1, betas=(0.9, 0.0), start_preconditioning_step=1, preconditioning_compute_steps=1,
        graft_type=peer.optimizer.shampoo.LayerWiseGrafting.NONE, nesterov=False, use_svd=True, matrix_eps=1e-14,
        block_size=4, shape_interpretation=False,
    )  # fmt: skip
    other.param_groups[0]["betas"] = (0.9, 1.0)  # a sum, which its constructor does not take
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        grad = torch.randn(4, 4, generator=g, dtype=torch.float64)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
