"""Proximal maps: none of them is beaten by a nearby or a far point."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from wellposed.parts.proximal import (
    envelope,
    envelope_shrinkage,
    group_shrink,
    hard_threshold,
    nuclear_shrink,
    soft_threshold,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shrunk(v: Tensor, k: int, lam: float, d: Tensor | None = None) -> Tensor:
    return v * envelope_shrinkage(v.norm(dim=1), k, lam, d)[:, None]


D = torch.tensor([1.0, 0.5, 2.0, 1.5, 1.0, 0.7], dtype=torch.float64)
MAPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "l1": (lambda v: soft_threshold(v, 0.6), lambda x: 0.6 * x.abs().sum()),
    "l0": (lambda v: hard_threshold(v, 0.3), lambda x: 0.3 * (x != 0).sum()),
    "group": (lambda v: group_shrink(v, 0.9), lambda x: 0.9 * x.norm(dim=1).sum()),
    "nuclear": (lambda v: nuclear_shrink(v, 0.8), lambda x: 0.8 * torch.linalg.matrix_norm(x, "nuc")),
    "envelope": (lambda v: shrunk(v, 3, 0.4), lambda x: 0.4 * envelope(x.norm(dim=1), 3)),
    "weighted envelope": (lambda v: shrunk(v, 2, 3.0, D), lambda x: 3.0 * envelope(x.norm(dim=1), 2, D)),
}


@pytest.mark.parametrize("name", MAPS)
def test_nothing_is_better(name: str) -> None:
    prox, penalty = MAPS[name]
    v = draw(6, 4)

    def cost(x: Tensor) -> float:
        return float(0.5 * (x - v).square().sum() + penalty(x))

    best = prox(v)
    at_best = cost(best)
    for i in range(300):
        scale = 10.0 ** -(i % 7)
        assert cost(best + scale * draw(6, 4, seed=i + 1)) >= at_best - 1e-12
        keep = draw(6, 1, seed=i + 1) > 0  # some rows removed or restored
        assert cost(torch.where(keep, best, 0.0)) >= at_best - 1e-12
        assert cost(torch.where(keep, best, v)) >= at_best - 1e-12


def k_support_dual(w: Tensor, k: int) -> float:
    """The k-support norm by its definition in Argyriou et al. 2012, Proposition 2.1: search the one r that fits."""
    z = [float("inf"), *sorted(w.abs().tolist(), reverse=True)]
    for r in range(k):
        rest = sum(z[k - r :])
        if z[k - r - 1] > rest / (r + 1) >= z[k - r]:
            return (sum(a * a for a in z[1 : k - r]) + rest**2 / (r + 1)) ** 0.5
    raise AssertionError("one r fits")


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_value_is_half_the_squared_k_support_norm(k: int) -> None:
    for seed in range(5):
        w = draw(12, seed=seed)
        assert envelope(w.abs(), k).item() == pytest.approx(0.5 * k_support_dual(w, k) ** 2, rel=1e-12)


def test_value_at_the_ends_and_gradient() -> None:
    w = draw(8)
    assert envelope(w.abs(), 1).item() == pytest.approx(0.5 * w.abs().sum().item() ** 2)
    assert envelope(w.abs(), 8).item() == pytest.approx(0.5 * w.square().sum().item())
    few = torch.where(torch.arange(8) < 3, w, 0.0).abs()
    assert envelope(few, 3).item() == pytest.approx(0.5 * few.square().sum().item())
    norms = w.abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda n: envelope(n, 3, torch.arange(1.0, 9.0, dtype=n.dtype)), (norms,))


def test_convex_and_below_on_sparse_vectors() -> None:
    """An envelope: no larger than half the squared norm wherever at most k entries live, and convex."""
    for pair in combinations(range(6), 2):
        w = torch.zeros(6, dtype=torch.float64)
        w[list(pair)] = draw(2).abs()
        assert envelope(w, 2).item() == pytest.approx(0.5 * w.square().sum().item())
    a, b = draw(6).abs(), draw(6, seed=1).abs()
    assert envelope((a + b) / 2, 2) <= (envelope(a, 2) + envelope(b, 2)) / 2


def test_survivors_fall_to_k_as_lambda_grows() -> None:
    v = draw(16).abs()
    alive = [int((envelope_shrinkage(v, 4, lam) > 0).sum()) for lam in (1e-3, 0.01, 0.1, 1.0, 10.0, 1e3)]
    assert alive == sorted(alive, reverse=True)
    assert alive[0] > 4
    assert alive[-1] == 4


def test_fewer_groups_than_k_and_none() -> None:
    v = torch.tensor([0.0, 2.0, 0.0, 1.0])
    torch.testing.assert_close(envelope_shrinkage(v, 3, 0.5), torch.tensor([0.0, 1.0, 0.0, 1.0]) / 1.5)
    assert torch.equal(envelope_shrinkage(torch.zeros(4), 2, 0.5), torch.zeros(4))
    assert envelope(torch.zeros(4), 2) == 0
    with pytest.raises(ValueError, match=r"k in 1 \.\.\. 4, the number of groups; got 5"):
        envelope_shrinkage(v, 5, 1.0)


def test_many_groups_in_single_precision() -> None:
    v = draw(100_000).abs().float()
    factor = envelope_shrinkage(v, 1000, 0.01)
    share = 0.01 * factor / (1 - factor)
    assert share.sum().item() == pytest.approx(1000, rel=1e-4)
