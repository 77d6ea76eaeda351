"""Input-convex networks are convex, their gradient is the gradient, and it can be inverted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import wellposed as wp
from wellposed.parts.convex import InputConvex, inverse_gradient

KINDS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "dense": ({"inputs": 5, "widths": (7, 6, 4)}, (5,)),
    "one layer": ({"inputs": 3, "widths": (8,), "sharpness": 2.0}, (3,)),
    "conv": ({"inputs": 2, "widths": (4, 3), "kernel": 3, "strong": 0.2}, (2, 5, 4)),
    "projected": ({"inputs": 5, "widths": (7, 6), "projected": True}, (5,)),
}
each = pytest.mark.parametrize("kind", KINDS)


def net(kind: str, seed: int = 0, scale: float = 1.0) -> InputConvex:
    """With weights moved far from the start, whatever their sign."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = InputConvex(**KINDS[kind][0]).double()
        with torch.no_grad():
            for p in made.parameters():
                p.add_(scale * torch.randn_like(p))
    made.project()
    return made


def points(kind: str, seed: int, rows: int = 6, scale: float = 2.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, *KINDS[kind][1], generator=g, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_convex_whatever_the_weights(kind: str, seed: int, share: float) -> None:
    psi = net(kind, seed)
    x, y = points(kind, seed), points(kind, seed + 1)
    with torch.no_grad():
        chord = share * psi(x) + (1 - share) * psi(y)
        slack = chord - psi(share * x + (1 - share) * y)
        bend = psi.strong / 2 * share * (1 - share) * (x - y).flatten(1).square().sum(1)
    assert (slack >= bend - 1e-12 * chord.abs()).all()


def test_negative_weights_would_not_be() -> None:
    psi = InputConvex(5, (7, 6), projected=True).double()
    with torch.no_grad():
        psi.head.neg_()
    x, y = points("dense", 0), points("dense", 1)
    assert (psi(x) + psi(y) < 2 * psi((x + y) / 2)).any()
    psi.project()
    assert (psi(x) + psi(y) >= 2 * psi((x + y) / 2)).all()


@each
def test_the_gradient_is_the_gradient(kind: str) -> None:
    psi, x = net(kind), points(kind, 3).requires_grad_()
    (expected,) = torch.autograd.grad(psi(x).sum(), x)
    torch.testing.assert_close(psi.gradient(x), expected, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        assert psi.gradient(x.detach()).shape == x.shape


@each
def test_derivatives(kind: str) -> None:
    psi, x = net(kind, scale=0.3), points(kind, 4, rows=2, scale=0.3).requires_grad_()
    assert torch.autograd.gradcheck(psi, x)
    assert torch.autograd.gradcheck(psi.gradient, x)


@each
def test_every_parameter_shapes_the_gradient(kind: str) -> None:
    """None is unused, as DDP would complain."""
    psi = net(kind, scale=0.3)
    psi.gradient(points(kind, 5)).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in psi.parameters())


@each
def test_the_jacobian_is_symmetric_and_positive(kind: str) -> None:
    psi, x = net(kind), points(kind, 6, rows=1)
    n = x.numel()
    jacobian = torch.func.jacrev(psi.gradient)(x).view(n, n).detach()
    torch.testing.assert_close(jacobian, jacobian.T, rtol=0, atol=1e-12 * float(jacobian.abs().max()))
    assert torch.linalg.eigvalsh(jacobian).min() >= psi.strong - 1e-12 * float(jacobian.abs().max())


def test_convolutions_take_any_size() -> None:
    psi = net("conv")
    x = torch.randn(2, 2, 9, 3, dtype=torch.float64)
    assert psi(x).shape == (2,)
    assert psi.gradient(x).shape == x.shape


class Potential(torch.nn.Module):
    """A gradient map to be trained."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.convex = InputConvex(3, (16, 16), **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.convex.gradient(x)


@pytest.mark.parametrize("projected", [False, True])
def test_learns_a_monotone_map_and_stays_convex(projected: bool) -> None:
    torch.manual_seed(0)
    model = Potential(projected=projected)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    hook = model.convex.projected_by(optimizer)
    recipe = wp.Recipe().attach(model, wp.Regress())
    losses = []
    for _ in range(200):
        x = torch.randn(64, 3)
        losses.append(recipe.step({"x": x, "y": x.sign() * x.abs().sqrt() + x}, optimizer)["total"].item())
        if projected:
            assert all((p >= 0).all() for p in [*model.convex.chain, model.convex.head])
    assert losses[-1] < 0.1 * losses[0]
    if projected:
        assert any((p == 0).any() for p in [*model.convex.chain, model.convex.head]), "nothing was ever projected"
    hook.remove()


@each
def test_the_inverse_is_an_inverse(kind: str) -> None:
    psi = net(kind, scale=0.5)
    y = points(kind, 7)
    x = psi.gradient(y).detach()
    found = inverse_gradient(psi.gradient, x, tol=1e-8)
    assert found.converged.all()
    torch.testing.assert_close(psi.gradient(found.point), x, rtol=0, atol=1e-7 * max(1.0, float(x.abs().max())))


def test_the_inverse_of_a_quadratic_is_a_linear_solve() -> None:
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(4, 4, generator=g, dtype=torch.float64)
    matrix = factor @ factor.T + 0.1 * torch.eye(4, dtype=torch.float64)
    x = torch.randn(5, 4, generator=g, dtype=torch.float64)
    found = inverse_gradient(lambda y: y @ matrix, x, tol=1e-10)
    torch.testing.assert_close(found.point, torch.linalg.solve(matrix, x.T).T, rtol=0, atol=1e-7)


def test_says_where_there_is_no_inverse() -> None:
    """Without strong convexity the range is bounded: one sample lies outside, the other is found all the same."""
    psi = InputConvex(1, (8,)).double()
    reach, inside = psi.gradient(torch.tensor([[1e6], [0.3]], dtype=torch.float64)).detach()
    found = inverse_gradient(psi.gradient, torch.stack([reach + 1, inside]), iterations=40)
    assert found.converged.tolist() == [False, True]
    assert found.residual[0] > 0.1
    assert found.point.isfinite().all()


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"widths must be at least 1, got 3 and \[\]"):
        InputConvex(3, ())
    with pytest.raises(ValueError, match="kernel must be odd"):
        InputConvex(3, (4,), kernel=2)
    with pytest.raises(ValueError, match="strong must be at least 0 and sharpness above 0, got -1 and 10"):
        InputConvex(3, (4,), strong=-1)
