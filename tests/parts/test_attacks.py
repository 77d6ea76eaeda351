"""Attacks against closed forms on linear losses, where the worst point is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wellposed.parts.attacks import Norm, fgsm, pgd, project, random_start

SIZES: dict[Norm, float] = {"linf": 0.25, "l2": 0.5}  # of a step of 0.25 in each of four coordinates


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norms(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)


def test_linear_loss_linf() -> None:
    """The worst point of w . x in the ball is x + radius sign(w); one step finds it, as do many from anywhere."""
    x, w = rows(4, 3, 2), rows(3, 2, seed=1) - 0.5
    worst = x + 0.1 * w.sign()
    loss = lambda z: (z * w).flatten(1).sum(1)  # noqa: E731
    torch.testing.assert_close(fgsm(loss, x, 0.1), worst, rtol=0, atol=1e-15)
    start = random_start(x, 0.1, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(pgd(loss, x, 0.1, 5, start=start), worst, rtol=0, atol=1e-15)


def test_linear_loss_l2() -> None:
    x, w = rows(4, 3, 2), rows(3, 2, seed=1) - 0.5
    loss = lambda z: (z * w).flatten(1).sum(1)  # noqa: E731
    found = pgd(loss, x, 0.7, 3, norm="l2")
    torch.testing.assert_close(found, x + 0.7 * w / w.norm(), rtol=0, atol=1e-14)


def test_by_explicit_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = rows(6, 5), torch.arange(6) % 3
    found = pgd(lambda z: F.cross_entropy(model(z), y, reduction="sum"), x, 0.2, 4, size=0.07, box=(0.0, 1.0))
    for i in range(6):
        point = x[i]
        for _ in range(4):
            leaf = point.clone().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(leaf[None]), y[i : i + 1]), leaf)
            point = point + 0.07 * slope.sign()
            point = torch.minimum(torch.maximum(point, x[i] - 0.2), x[i] + 0.2).clamp(0, 1)
        torch.testing.assert_close(found[i], point, rtol=0, atol=1e-14)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stays_in_ball_and_box_and_climbs(norm: Norm) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    x, y, radius = rows(12, 1, 4, 4).float(), torch.arange(12) % 3, 0.3

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(model(z), y, reduction="none")

    start = random_start(x, radius, norm, torch.Generator().manual_seed(3))
    found = pgd(loss, x, radius, 10, norm=norm, box=(0.0, 1.0), start=start)
    size = norms(found - x) if norm == "l2" else (found - x).abs().flatten(1).amax(1)
    assert size.max() <= radius * (1 + 1e-6)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (loss(found) > loss(x)).all()
    assert not found.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_works_where_gradients_are_off_and_on_half_precision() -> None:
    x = rows(3, 4).bfloat16()
    with torch.no_grad():
        for norm, size in SIZES.items():
            found = fgsm(lambda z: z.sum(1), x, size, norm=norm)
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found.float(), x.float() + 0.25, rtol=0, atol=2**-7)


def test_where_the_loss_is_flat_the_input_stays() -> None:
    x = rows(3, 4)
    for norm in SIZES:
        assert torch.equal(pgd(lambda z: 0 * z.sum(1), x, 0.5, 2, norm=norm), x)
    assert torch.equal(fgsm(lambda z: z.sum(1), x, 0.0), x)


def test_random_starts_fill_the_ball() -> None:
    x, g = torch.zeros(20_000, 3, dtype=torch.float64), torch.Generator().manual_seed(0)
    length = norms(random_start(x, 2.0, "l2", g)) / 2
    assert length.max() <= 1
    assert float(length.pow(3).mean()) == pytest.approx(0.5, abs=0.01)  # r^d is uniform; its sd over 20000 is 0.002
    edge = random_start(x, 2.0, "linf", g).abs()
    assert edge.max() <= 2
    assert float(edge.mean()) == pytest.approx(1.0, abs=0.01)


def test_projection_is_the_nearest_point() -> None:
    x, moved = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.1, 0.2]])
    torch.testing.assert_close(project(moved, x, 1.0, "l2"), torch.tensor([[0.6, 0.8], [0.1, 0.2]]))
    torch.testing.assert_close(project(moved, x, 1.0), torch.tensor([[1.0, 1.0], [0.1, 0.2]]))
    torch.testing.assert_close(project(-moved, x, 1.0, box=(0.0, 1.0)), torch.zeros(2, 2), rtol=0, atol=0)


def test_bad_settings() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="norm must be 'linf' or 'l2', got 'l1'"):
        pgd(lambda z: z.sum(1), x, 0.1, norm="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        pgd(lambda z: z.sum(1), x, 0.1, 0)
    with pytest.raises(ValueError, match="radius of an attack must be at least 0, got -1"):
        fgsm(lambda z: z.sum(1), x, -1)


def test_a_ball_of_radius_0_holds_its_centre() -> None:
    x = torch.tensor([[0.2], [0.4]])
    assert torch.equal(project(x, x, 0.0, "l2"), x)
    assert torch.equal(project(x + 1, x, 0.0, "l2"), x)
