"""AMP against projected ascent written out, and its relation to SAM."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.smoothness.amp import AMP, amp_perturbation
from wellposed.smoothness.sam import SAM

H = torch.diag(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))


class Quadratic(wp.Task):
    """w' H w / 2 whatever the batch."""

    reads, yields = ("x",), ("w",)

    def forward(self, model: nn.Module, batch: object) -> dict[str, Tensor]:
        return {"w": next(model.parameters())[0]}

    def loss(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return (0.5 * out["w"] @ H @ out["w"]).expand(len(batch["x"]))


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def images() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, 1, 8, 8, generator=g, dtype=torch.float64), "y": torch.arange(12) % 3}


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def updated(method: wp.Method, steps: int = 3) -> Tensor:
    model = conv_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = wp.Recipe(method).attach(model, wp.Classify())
    for _ in range(steps):
        recipe.step(images(), optimizer)
    return weights(model)


def test_inside_the_ball_the_step_is_plain_ascent() -> None:
    """On a quadratic with ||g|| below epsilon: D = zeta g, and w <- w - eta H (w + zeta H w)."""
    model = nn.Linear(3, 1, bias=False).double()
    w = model.weight.detach()[0].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = AMP(epsilon=10.0, inner_lr=0.7)
    wp.Recipe(method).attach(model, Quadratic()).step({"x": torch.zeros(2, 1)}, optimizer)
    assert torch.allclose(model.weight[0], w - 0.1 * H @ (w + 0.7 * H @ w), rtol=0, atol=1e-14)


@pytest.mark.parametrize("per_tensor", [True, False])
def test_equals_projected_ascent_written_out(per_tensor: bool) -> None:
    model, batch, epsilon, zeta = conv_net(), images(), 0.3, 0.8
    params = list(model.parameters())
    delta = [torch.zeros_like(p) for p in params]

    def gradient() -> list[Tensor]:
        moved = [p + d for p, d in zip(params, delta, strict=True)]
        names = [n for n, _ in model.named_parameters()]
        out = torch.func.functional_call(model, dict(zip(names, moved, strict=True)), (batch["x"],))
        return list(torch.autograd.grad(F.cross_entropy(out, batch["y"]), params))

    for _ in range(3):
        delta = [d + zeta * g for d, g in zip(delta, gradient(), strict=True)]
        over = math.sqrt(sum(float(d.square().sum()) for d in delta))
        for i, d in enumerate(delta):
            norm = float(d.norm()) if per_tensor else over
            if norm > epsilon:
                delta[i] = d * epsilon / norm
    expected = torch.cat([(p - 0.1 * g).flatten() for p, g in zip(params, gradient(), strict=True)])
    ours = updated(AMP(epsilon=epsilon, inner_lr=zeta, inner_iter=3, per_tensor=per_tensor), steps=1)
    assert torch.allclose(ours, expected.detach(), rtol=0, atol=1e-13)


def test_is_sam_where_the_single_ball_is_always_reached() -> None:
    sam, one_ball = updated(SAM(rho=0.05)), updated(AMP(epsilon=0.05, per_tensor=False))
    assert torch.allclose(sam, one_ball, rtol=0, atol=1e-10)
    assert not torch.allclose(sam, updated(AMP(epsilon=0.05)), rtol=0, atol=1e-4)


def test_balls() -> None:
    grads = {"a": torch.full((4,), 2.0), "b": torch.tensor([0.01, 0.0]), "c": torch.zeros(3)}
    own = amp_perturbation(grads, 0.5)
    assert own["a"].norm() == pytest.approx(0.5)
    assert torch.equal(own["b"], grads["b"])  # inside its ball: not touched at all
    assert torch.equal(own["c"], grads["c"])  # nor is a zero gradient divided by its norm
    one = amp_perturbation(grads, 0.5, per_tensor=False)
    assert torch.cat(list(one.values())).norm() == pytest.approx(0.5)
    later = amp_perturbation({"b": grads["b"]}, 0.5, before=own)
    assert torch.equal(later["b"], own["b"] + grads["b"])
    assert later["a"] is own["a"]  # a parameter without gradient this time stays where it was


def test_costs_one_gradient_per_inner_step_and_one_more() -> None:
    model, calls = conv_net(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    method = AMP(inner_iter=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wp.Recipe(method).attach(model, wp.Classify()).step(images(), optimizer)
    assert len(calls) == method.passes() == 4


def test_statistics_of_the_first_pass_and_weights_restored() -> None:
    plain, moved = conv_net(), conv_net()
    for model, methods in ((plain, []), (moved, [AMP(inner_iter=2)])):
        wp.Recipe(*methods).attach(model, wp.Classify()).step(images(), torch.optim.SGD(model.parameters(), lr=0.0))
    for (k, a), b in zip(plain.state_dict().items(), moved.state_dict().values(), strict=True):
        assert torch.equal(a, b), k


def test_trains_a_transformer_with_a_frozen_layer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    model = nn.Sequential(nn.Embedding(7, 8), nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(40, 3))
    model[0].weight.requires_grad_(False)
    batch = {"x": torch.randint(7, (12, 5)), "y": torch.arange(12) % 3}
    recipe = wp.Recipe(AMP(epsilon=0.05)).attach(model, wp.Classify())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = [float(recipe.step(batch, optimizer)["total"]) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"epsilon": -1.0}, "epsilon must be at least 0"), ({"inner_lr": 0.0}, "above 0"), ({"inner_iter": 0}, "least 1")],
)
def test_bad_settings(setting: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AMP(**setting)
