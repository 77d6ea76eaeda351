"""Von Neumann entropy of representations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.papers.nets import ConvNet, Transformer, seeded
from wellposed.selfsup.vne import VNE, representation_entropy


def rows(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def matrix_log(c: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(c)
    return (vectors * values.log()) @ vectors.T


@pytest.mark.parametrize("shape", [(20, 4), (4, 20)])
def test_value_by_the_matrix_itself(shape: tuple[int, int]) -> None:
    h = F.normalize(rows(*shape))
    c = h.T @ h / len(h) if shape[1] < shape[0] else h @ h.T / len(h)  # without the eigenvalues that are 0
    expected = -torch.trace(c @ matrix_log(c))
    torch.testing.assert_close(representation_entropy(3 * h), expected, rtol=1e-10, atol=0)


def test_gradient_is_that_of_the_matrix_logarithm() -> None:
    """dS / dH = -(2 / N) H (log C + I), for rows of fixed length made tangential to the sphere."""
    h = F.normalize(rows(20, 4)).requires_grad_()
    (slope,) = torch.autograd.grad(representation_entropy(h), h)
    with torch.no_grad():
        free = -2 / 20 * h @ (matrix_log(h.T @ h / 20) + torch.eye(4))
        expected = free - (free * h).sum(1, keepdim=True) * h
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(representation_entropy, rows(5, 3).requires_grad_())


def test_largest_for_isotropic_rows_and_zero_for_parallel_ones() -> None:
    assert representation_entropy(torch.eye(5).repeat(3, 1)).item() == pytest.approx(math.log(5), rel=1e-6)
    assert abs(representation_entropy(torch.tensor([[1.0, 2.0], [3.0, 6.0], [-1.0, -2.0]])).item()) < 1e-6


def test_ascent_from_almost_rank_two_fills_all_directions() -> None:
    h = (rows(40, 2) @ rows(2, 6) + 1e-3 * rows(40, 6)).requires_grad_()
    optimizer = torch.optim.Adam([h], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-representation_entropy(h)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert representation_entropy(h).item() > 0.98 * math.log(6)


def test_missing_directions_have_no_gradient() -> None:
    h = (rows(40, 2) @ rows(2, 6)).requires_grad_()
    (slope,) = torch.autograd.grad(representation_entropy(h), h)
    across = torch.linalg.svd(h.detach()).Vh[2:]  # what the rows do not span
    assert slope.abs().max() > 1e-3
    assert (slope @ across.T).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["conv", "transformer"])
@pytest.mark.parametrize("strength", [1.0, -1.0])
def test_moves_the_entropy_in_the_direction_asked_for(kind: str, strength: float) -> None:
    g = torch.Generator().manual_seed(0)
    if kind == "conv":
        model: nn.Module = seeded(0, ConvNet, 3, width=4)
        layer, x = "features_.2", torch.rand(12, 1, 8, 8, generator=g)
    else:
        model = seeded(0, Transformer, 5, 3, size=4, width=8, pooled=True)
        layer, x = "blocks", torch.rand(12, 5, 4, generator=g)
    batch = {"x": x, "y": torch.arange(12) % 3}
    recipe = wp.Recipe(VNE(layer=layer, strength=strength)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    terms = [float(recipe.step(batch, optimizer)["VNE"]) for _ in range(30)]
    assert terms[-1] < terms[0] - 0.05  # strength times minus the entropy falls either way


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(wp.RecipeError, match="nowhere"):
        wp.Recipe(VNE(layer="nowhere")).attach(nn.Linear(2, 2), wp.Classify(classes=2))
