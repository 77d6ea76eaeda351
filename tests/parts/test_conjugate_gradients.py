"""Conjugate gradients for many systems at once."""

from __future__ import annotations

import torch
from torch import Tensor

from wellposed.parts.conjugate_gradients import conjugate_gradients


def systems(rows: int = 4, n: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(rows, n, n, generator=g, dtype=torch.float64)
    return factor @ factor.mT, torch.randn(rows, n, generator=g, dtype=torch.float64)


def test_solves_as_a_direct_solver_does() -> None:
    matrices, b = systems()
    damping = torch.tensor([0.1, 1.0, 10.0, 0.5], dtype=torch.float64)
    found = conjugate_gradients(
        lambda v: torch.einsum("bij,bj->bi", matrices, v), b, damping=damping, tol=1e-12, iterations=60
    )
    direct = torch.linalg.solve(matrices + damping.view(-1, 1, 1) * torch.eye(6, dtype=torch.float64), b)
    torch.testing.assert_close(found.value, direct, rtol=0, atol=1e-9)
    assert (found.residual <= 1e-12).all()


def test_says_how_far_it_is() -> None:
    matrices, b = systems()
    found = conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", matrices, v), b, damping=0.01, iterations=2)
    error = b - torch.einsum("bij,bj->bi", matrices, found.value) - 0.01 * found.value
    torch.testing.assert_close(found.residual, error.norm(dim=1) / b.norm(dim=1), rtol=1e-9, atol=0)
    assert (found.residual > 1e-3).any()


def test_samples_do_not_touch_each_other() -> None:
    """One that is done, or all zero, waits for the rest; images are as good as vectors."""
    _, b = systems(4, 12)
    b = torch.cat([b, torch.zeros(1, 12, dtype=torch.float64)]).view(5, 3, 2, 2)
    scale = torch.arange(1.0, 13.0, dtype=torch.float64).view(3, 2, 2)
    together = conjugate_gradients(lambda v: scale * v, b, tol=1e-10)
    for row in range(5):
        alone = conjugate_gradients(lambda v: scale * v, b[row : row + 1], tol=1e-10)
        torch.testing.assert_close(together.value[row : row + 1], alone.value, rtol=0, atol=1e-14)
    torch.testing.assert_close(together.value, b / scale, rtol=1e-8, atol=1e-12)
    assert together.residual[4] == 0
