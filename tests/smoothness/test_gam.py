"""GAM against closed forms on a quadratic and a hand-written loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.smoothness.gam import GAM, first_order_flatness, gam_gradient, gradient_norm_slope

H = torch.tensor([[3.0, 0.5, 0.0], [0.5, 1.0, -0.2], [0.0, -0.2, 0.4]], dtype=torch.float64)


class Quadratic(wp.Task):
    """w' H w / 2 whatever the batch: gradient H w."""

    reads, yields = ("x",), ("w",)

    def forward(self, model: nn.Module, batch: object) -> dict[str, Tensor]:
        return {"w": next(model.parameters())[0]}

    def loss(self, out: dict[str, Any], batch: Mapping[str, Any]) -> Tensor:
        return (0.5 * out["w"] @ H @ out["w"]).expand(len(batch["x"]))


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def images() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, 1, 8, 8, generator=g, dtype=torch.float64), "y": torch.arange(12) % 3}


def point() -> Tensor:
    return torch.tensor([0.7, -1.2, 2.0], dtype=torch.float64)


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def test_slope_of_the_gradient_norm_on_a_quadratic() -> None:
    w = point().requires_grad_()
    found = gradient_norm_slope(lambda: 0.5 * w @ H @ w, {"w": w})["w"]
    g = H @ point()
    torch.testing.assert_close(found, H @ g / g.norm(), rtol=1e-11, atol=0)
    assert w.grad is None


def test_slope_is_the_derivative_of_the_gradient_norm() -> None:
    w = point().requires_grad_()

    def loss() -> Tensor:
        return (w.pow(4).sum() + w.prod()).sin()

    (g,) = torch.autograd.grad(loss(), w, create_graph=True)
    (expected,) = torch.autograd.grad(g.norm(), w)
    torch.testing.assert_close(gradient_norm_slope(loss, {"w": w})["w"], expected, rtol=1e-10, atol=0)


def test_step_on_a_quadratic_in_closed_form() -> None:
    """G = m + rho (grad ||grad L||(w) + grad ||grad L||(w2)): plain gradients and those of the penalty."""
    rho, rho_norm, gamma = 0.3, 0.2, 0.4
    model = nn.Linear(3, 1, bias=False).double()
    w = model.weight.detach()[0].clone()
    wp.Recipe(GAM(rho=rho, rho_norm=rho_norm, gamma=gamma)).attach(model, Quadratic()).step(
        {"x": torch.zeros(2, 1)}, torch.optim.SGD(model.parameters(), lr=0.1)
    )

    def slope(w: Tensor) -> Tensor:
        return H @ unit(H @ w)

    w2 = w + rho_norm * unit(slope(w))
    m = H @ w + H @ w2
    big = m + rho * (slope(w) + slope(w2))
    across = m - (m @ big) / (big @ big) * big
    torch.testing.assert_close(model.weight.detach()[0], w - 0.1 * (big - gamma * across) / 2, rtol=0, atol=1e-10)


def test_equals_a_hand_written_loop() -> None:
    ours, theirs, batch = conv_net(), conv_net(), images()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    recipe = wp.Recipe(GAM(rho=0.2, rho_norm=0.3, gamma=0.2)).attach(ours, wp.Classify())
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        recipe.step(batch, optimizer)

        params = list(theirs.parameters())
        start = nn.utils.parameters_to_vector(params).detach().clone()
        statistics: dict[str, Tensor] = {}

        def gradient(w: Tensor, params: list[nn.Parameter] = params, kept: dict[str, Tensor] = statistics) -> Tensor:
            nn.utils.vector_to_parameters(w, params)
            found = torch.autograd.grad(F.cross_entropy(theirs(batch["x"]), batch["y"]), params)
            if not kept:  # statistics stay those of the first pass
                kept.update({k: v.clone() for k, v in theirs.named_buffers()})
            return torch.cat([g.flatten() for g in found])

        g0 = gradient(start)
        g1 = gradient(start + 0.2 * unit(g0))
        w2 = start + 0.3 * unit(g1 - g0)
        g2 = gradient(w2)
        g3 = gradient(w2 + 0.2 * unit(g2))
        big, m = g1 + g3, g0 + g2
        final = (big - 0.2 * (m - (m @ big) / (big @ big) * big)) / 2
        nn.utils.vector_to_parameters(start, params)
        pieces = torch.split(final, [p.numel() for p in params])
        for p, piece in zip(params, pieces, strict=True):
            p.grad = piece.view_as(p).clone()
        for k, v in theirs.named_buffers():
            v.copy_(statistics[k])
        reference.step()
    for (k, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11, msg=k)


def test_gamma_only_touches_what_is_orthogonal_to_the_ascended_gradients() -> None:
    torch.manual_seed(0)
    big, m = ({"a": torch.randn(3).double(), "b": torch.randn(2).double()} for _ in range(2))
    step = torch.cat(list(gam_gradient(big, m, 0.5).values()))
    flat, plain = (torch.cat(list(v.values())) for v in (big, m))
    assert float(step @ flat / (flat @ flat)) == pytest.approx(0.5, rel=1e-12)
    across = plain - (plain @ flat) / (flat @ flat) * flat
    torch.testing.assert_close(step - flat / 2, -0.25 * across, rtol=1e-12, atol=1e-15)


def test_first_order_flatness_at_a_minimum_is_the_largest_eigenvalue() -> None:
    """max ||H d|| over ||d|| <= rho is rho lambda_max; times rho."""
    w = (1e-9 * point()).requires_grad_()
    kept = w.detach().clone()
    found = float(first_order_flatness(lambda: 0.5 * w @ H @ w, {"w": w}, 0.1, 40))
    worst = 0.01 * float(torch.linalg.eigvalsh(H)[-1])
    # The ascent, 2.5 radii long, shrinks other directions to about a tenth; the norm lacks half their square or less.
    assert 0.995 * worst < found <= worst
    assert torch.equal(w.detach(), kept)


def test_first_order_flatness_sees_what_two_steps_of_the_loss_hide() -> None:
    """Definition's point: rho ||grad|| bounds from above what the loss rises in the ball, up to curvature."""
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    ripple = lambda: (w - w + 0.01 * torch.sin(40 * w)).sum()  # noqa: E731
    rise = max(0.01 * math.sin(40 * d / 1000) for d in range(101))
    assert float(first_order_flatness(ripple, {"w": w}, 0.1)) > 3 * rise


def test_a_parameter_that_takes_no_part_and_one_that_is_shared() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.head = nn.Linear(4, 3, dtype=torch.float64)
            self.idle = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x).relu()).double())

    torch.manual_seed(0)
    model = Odd()
    idle = model.idle.weight.detach().clone()
    recipe = wp.Recipe(GAM()).attach(model, wp.Classify())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    batch = {"x": torch.randn(12, 4), "y": torch.arange(12) % 3}
    losses = [float(recipe.step(batch, optimizer)["task"]) for _ in range(60)]
    assert losses[-1] < losses[0]
    assert torch.equal(model.idle.weight, idle)
    assert model.idle.weight.grad is None


def test_trains_a_transformer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
    batch = {"x": torch.randn(12, 5, 8), "y": torch.arange(12) % 3}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recipe = wp.Recipe(GAM(rho=0.05, rho_norm=0.05)).attach(model, wp.Classify())
    losses = [float(recipe.step(batch, optimizer)["total"]) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert GAM().passes() == 4
    assert GAM(rho=0.0).passes() == 1


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="rho_norm must be at least 0, got -1"):
        GAM(rho_norm=-1.0)
