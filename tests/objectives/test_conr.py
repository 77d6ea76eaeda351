"""ConR: value by loops, its gradient in closed form, when it is silent, and label densities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.objectives.conr import ConR, conr_loss, inverse_label_density


def batch(rows: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 4, generator=g, dtype=torch.float64)
    y, guess, rho = torch.rand(3, rows, generator=g, dtype=torch.float64)
    return z, y, guess, rho + 0.5


def by_loops(z: Tensor, y: Tensor, guess: Tensor, rho: Tensor, w: float, tau: float, push: float) -> list[float]:
    rows, found = range(len(z)), []
    for i in rows:
        s = [float(z[i] @ z[j] / z[i].norm() / z[j].norm()) / tau for j in rows]
        near = [j for j in rows if j != i and abs(y[i] - y[j]) <= w]
        confused = [j for j in rows if abs(y[i] - y[j]) > w and abs(guess[i] - guess[j]) <= w]
        total = sum(math.exp(s[j]) for j in near)
        total += sum(push * float(rho[i] * abs(y[i] - y[j])) * math.exp(s[j]) for j in confused)
        found.append(-sum(s[p] - math.log(total) for p in near) / len(near) if near and confused else 0.0)
    return found


@pytest.mark.parametrize(("w", "tau", "push"), [(0.2, 0.2, 0.2), (0.05, 1.0, 5.0), (0.5, 0.07, 0.01)])
def test_value_by_explicit_loops(w: float, tau: float, push: float) -> None:
    z, y, guess, rho = batch()
    expected = by_loops(z, y, guess, rho, w, tau, push)
    assert any(expected)
    assert conr_loss(z, y, guess, w, tau, push, rho).tolist() == pytest.approx(expected, rel=1e-11)
    plain = by_loops(z, y, guess, torch.ones(12), w, tau, push)
    assert conr_loss(z, y[:, None], guess[:, None], w, tau, push).tolist() == pytest.approx(plain, rel=1e-11)
    assert torch.autograd.gradcheck(lambda f: conr_loss(f, y, guess, w, tau, push, rho), z.requires_grad_())


def test_repulsion_is_proportional_to_label_gap_and_rarity() -> None:
    """By similarity of a confused sample the slope is S exp(s) / Z, by that of a near one exp(s) / Z - 1 / |P|."""
    # orthonormal features but for the anchor's tilt: cosines of the anchor can be read off its coordinates
    z = torch.eye(4, dtype=torch.float64)
    z[0] = torch.tensor([0.5, 0.5, 0.5, 0.5])
    z.requires_grad_()
    y = torch.tensor([0.0, 0.1, 1.0, 3.0], dtype=torch.float64)
    guess = torch.zeros(4, dtype=torch.float64)
    rho = torch.tensor([2.0, 1, 1, 1], dtype=torch.float64)
    loss = conr_loss(z, y, guess, window=0.2, tau=0.5, push=0.3, weight=rho)[0]
    scores = [1.0, 0.3 * 2 * 1.0, 0.3 * 2 * 3.0]  # all cosines equal: exp(s) cancels
    assert loss.item() == pytest.approx(math.log(sum(scores)), rel=1e-12)
    (slope,) = torch.autograd.grad(loss, z)
    share = torch.tensor(scores) / sum(scores)
    share[0] -= 1
    anchor = z[0].detach()
    for j in (1, 2, 3):  # d cos(z_0, z_j) / d z_j = z_0 - cos z_j for unit vectors
        expected = share[j - 1] / 0.5 * (anchor - 0.5 * z[j].detach())
        assert torch.allclose(slope[j], expected.double(), rtol=0, atol=1e-7)


def test_silent_where_all_far_labels_have_far_predictions() -> None:
    z, y, _, _ = batch()
    assert not conr_loss(z, y, y, 0.1).any()
    z.requires_grad_()
    (slope,) = torch.autograd.grad(conr_loss(z, y, y, 0.1).sum(), z)
    assert not slope.any()
    alone = torch.tensor([0.0, 1.0, 2.0])  # nobody has a neighbour
    assert not conr_loss(torch.randn(3, 2), alone, torch.zeros(3), 0.1).any()


def test_half_precision_and_large_cosines_stay_finite() -> None:
    z, y, guess, _ = batch()
    z = (1e4 * torch.ones_like(z)).bfloat16().requires_grad_()
    loss = conr_loss(z, y, guess, 0.2, tau=1e-3)
    assert loss.dtype == torch.float32
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_inverse_density_by_explicit_loops() -> None:
    labels = torch.tensor([0.0, 0.1, 0.2, 0.1, 3.0], dtype=torch.float64)
    dense = [sum(math.exp(-((a - b) ** 2) / 2 / 0.25) for b in labels.tolist()) for a in labels.tolist()]
    expected = [1 / d / (sum(1 / e for e in dense) / 5) for d in dense]
    found = inverse_label_density(labels, labels, 0.5)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.mean().item() == pytest.approx(1, rel=1e-12)
    assert inverse_label_density(torch.tensor([1e6]), labels, 0.5).item() == pytest.approx(max(expected), rel=1e-12)
    with pytest.raises(ValueError, match="bandwidth above 0, got 0"):
        inverse_label_density(labels, labels, 0.0)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
    model, layer, x = (
        (conv, "2", torch.randn(16, 1, 8, 8)) if kind == "conv" else (Encoder(), "block", torch.randn(16, 5, 8))
    )
    y = torch.linspace(0, 1, 16)
    data = {"x": x, "y": y, "rho": inverse_label_density(y, y, 0.2)}
    recipe = wp.Recipe(ConR(layer=layer, window=0.2, weight="rho", strength=0.1)).attach(model, wp.Regress())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    terms = [recipe.step(data, optimizer) for _ in range(40)]
    assert terms[0]["ConR"] > 0
    assert terms[-1]["task"] < terms[0]["task"]


def test_bad_input() -> None:
    model = nn.Linear(4, 1)
    data = {"x": torch.randn(4, 4), "y": torch.randn(4)}
    recipe = wp.Recipe(ConR(layer="", window=0.2, weight="rho"))
    recipe.attach(nn.Sequential(model), wp.Regress())
    with pytest.raises(ValueError, match="ConR: the batch has no entry 'rho'; it has x, y"):
        recipe.step(data, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(wp.RecipeError, match="ConR works with real targets"):
        wp.Recipe(ConR(layer="", window=0.2)).attach(model, wp.Classify())
    with pytest.raises(ValueError, match="window must be above 0, got 0"):
        ConR(layer="0", window=0.0)
