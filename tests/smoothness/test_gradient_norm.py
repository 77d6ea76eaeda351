"""The gradient penalty against double backpropagation, closed forms and its relatives SAM and flooding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.smoothness.gradient_norm import GradientNormPenalty, flooding, gradient_norm_penalty
from wellposed.smoothness.sam import SAM

H = torch.diag(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))
MODES = ("forward", "backward", "double")


class Bowl(wp.Task):
    """w' H w / 2 + c sum w^3 / 6 whatever the batch."""

    reads, yields = ("x",), ("w",)

    def __init__(self, c: float = 0.0) -> None:
        self.c = c

    def forward(self, model: nn.Module, batch: object) -> dict[str, Tensor]:
        return {"w": next(model.parameters())[0]}

    def loss(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        w = out["w"]
        return (0.5 * w @ H @ w + self.c * w.pow(3).sum() / 6).expand(len(batch["x"]))


def bowl_gradient(method: wp.Method, c: float = 0.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    w = model.weight.detach()[0].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wp.Recipe(method).attach(model, Bowl(c)).step({"x": torch.zeros(2, 1)}, optimizer)
    return w, w - model.weight.detach()[0]


def smooth_net(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    between = nn.BatchNorm2d(4) if norm else nn.GroupNorm(1, 4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), between, nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def images() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, 1, 8, 8, generator=g, dtype=torch.float64), "y": torch.arange(12) % 3}


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def moved(method: wp.Method, split: int = 1, norm: bool = True, tier: str = "step") -> Tensor:
    model, batch = smooth_net(norm), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = wp.Recipe(method).attach(model, wp.Classify())
    if tier == "closure":
        wrapped = recipe.optimizer(optimizer)

        def closure() -> Tensor:
            loss = recipe.objective(model, batch)
            loss.backward()
            return loss

        wrapped.step(closure)
    else:
        parts = [dict(zip(batch, v, strict=True)) for v in zip(*(v.chunk(split) for v in batch.values()), strict=True)]
        recipe.step(parts, optimizer)
    return flat(model)


@pytest.mark.parametrize("mode", MODES)
def test_quadratic_closed_form(mode: str) -> None:
    w, g = bowl_gradient(GradientNormPenalty(gamma=0.3, eps=0.5, mode=mode))
    assert torch.allclose(g, H @ w + 0.3 * H @ H @ w, rtol=0, atol=1e-14)


def test_errors_of_forward_and_backward_are_opposite() -> None:
    """On a cubic each is off by the same term of order eps, so their mean is exact."""
    eps, c = 0.05, 2.0
    w, forward = bowl_gradient(GradientNormPenalty(gamma=0.3, eps=eps), c)
    _, backward = bowl_gradient(GradientNormPenalty(gamma=0.3, eps=eps, mode="backward"), c)
    _, exact = bowl_gradient(GradientNormPenalty(gamma=0.3, mode="double"), c)
    g = H @ w + c * w.square() / 2
    assert torch.allclose(forward - exact, 0.3 * eps * c * g.square() / 2, rtol=0, atol=1e-13)
    assert torch.allclose((forward + backward) / 2, exact, rtol=0, atol=1e-13)


def test_double_equals_a_hand_written_penalty() -> None:
    model, batch = smooth_net(), images()
    params = list(model.parameters())
    loss = F.cross_entropy(model(batch["x"]), batch["y"])
    grads = torch.autograd.grad(loss, params, create_graph=True)
    total = loss + 0.4 / 2 * sum(g.square().sum() for g in grads)
    expected = torch.cat(
        [(p - 0.1 * g).flatten() for p, g in zip(params, torch.autograd.grad(total, params), strict=True)]
    )
    assert torch.allclose(moved(GradientNormPenalty(gamma=0.4, mode="double")), expected.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_microbatches_and_closures_equal_the_one_batch(mode: str) -> None:
    def method() -> GradientNormPenalty:
        return GradientNormPenalty(gamma=0.4, mode=mode)

    whole = moved(method(), norm=False)
    assert not torch.allclose(whole, moved(GradientNormPenalty(gamma=0.0), norm=False), rtol=0, atol=1e-4)
    assert torch.allclose(whole, moved(method(), split=3, norm=False), rtol=0, atol=1e-13)
    assert torch.allclose(whole, moved(method(), norm=False, tier="closure"), rtol=0, atol=1e-13)


def test_double_inside_another_wrapper() -> None:
    """SAM around it takes the worst point of the penalised objective, by microbatches as well."""

    def recipe_weights(split: int) -> Tensor:
        model, batch = smooth_net(norm=False), images()
        recipe = wp.Recipe(SAM(rho=0.1), GradientNormPenalty(gamma=0.4, mode="double")).attach(model, wp.Classify())
        parts = [dict(zip(batch, v, strict=True)) for v in zip(*(v.chunk(split) for v in batch.values()), strict=True)]
        recipe.step(parts, torch.optim.SGD(model.parameters(), lr=0.1))
        return flat(model)

    assert torch.allclose(recipe_weights(1), recipe_weights(2), rtol=0, atol=1e-12)


def test_sam_is_the_forward_form_with_gamma_and_eps_rho_over_norm() -> None:
    model, batch = smooth_net(), images()
    grads = torch.autograd.grad(F.cross_entropy(model(batch["x"]), batch["y"]), list(model.parameters()))
    length = 0.2 / float(torch.cat([g.flatten() for g in grads]).norm())
    assert torch.allclose(moved(SAM(rho=0.2)), moved(GradientNormPenalty(gamma=length, eps=length)), rtol=0, atol=1e-11)


def test_flooding_descends_then_ascends_along_the_backward_form() -> None:
    """theta -> theta - eta g, then + eta g' equals -eta^2 times the backward difference quotient with eps = eta."""
    w, eta, level = torch.tensor([0.5, -0.4, 1.0], dtype=torch.float64, requires_grad=True), 0.3, 0.9

    def loss(v: Tensor) -> Tensor:
        return 0.5 * v @ H @ v + v.pow(3).sum() / 6

    (down,) = torch.autograd.grad(flooding(loss(w), 0.1), w)
    below = (w - eta * down).detach().requires_grad_()
    assert loss(w) > 0.1
    assert loss(below) < level
    (up,) = torch.autograd.grad(flooding(loss(below), level), below)
    g, g_back = torch.autograd.grad(loss(w), w)[0], torch.autograd.grad(loss(below), below)[0]
    assert torch.allclose(below - eta * up, w - eta**2 * (g - g_back) / eta, rtol=0, atol=1e-15)
    assert float(flooding(torch.tensor(0.02), 0.05)) == pytest.approx(0.08)


def test_penalty_is_differentiable() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)

    def value(w: Tensor) -> Tensor:
        return gradient_norm_penalty((x @ w).tanh().exp().sum(), [w])

    assert torch.autograd.gradcheck(value, torch.randn(3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("mode", MODES)
def test_trains_a_transformer_with_dropout_and_a_frozen_layer(mode: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    model = nn.Sequential(nn.Embedding(7, 8), nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(40, 3))
    model[0].weight.requires_grad_(False)
    batch = {"x": torch.randint(7, (12, 5)), "y": torch.arange(12) % 3}
    recipe = wp.Recipe(GradientNormPenalty(gamma=0.05, mode=mode)).attach(model, wp.Classify())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = [float(recipe.step(batch, optimizer)["total"]) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="mode must be 'forward', 'backward' or 'double', got 'central'"):
        GradientNormPenalty(mode="central")
    with pytest.raises(ValueError, match="eps must be above 0"):
        GradientNormPenalty(eps=0.0)
