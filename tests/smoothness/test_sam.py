"""SAM against its closed form, a hand-written reference, and the rules of extra passes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.smoothness.sam import SAM, sam_perturbation

H = torch.diag(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))


class Quadratic(wp.Task):
    """w' H w / 2 whatever the batch: gradient H w."""

    reads, yields = ("x",), ("w",)

    def forward(self, model: nn.Module, batch: object) -> dict[str, Tensor]:
        return {"w": next(model.parameters())[0]}

    def loss(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return (0.5 * out["w"] @ H @ out["w"]).expand(len(batch["x"]))


class Points(nn.Module):
    """Transformer encoder classifier over token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)).mean(1))


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def images(rows: int = 12) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(rows, 1, 8, 8, generator=g, dtype=torch.float64), "y": torch.arange(rows) % 3}


def test_quadratic_closed_form() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    w = model.weight.detach()[0].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wp.Recipe(SAM(rho=0.3)).attach(model, Quadratic()).step({"x": torch.zeros(2, 1)}, optimizer)
    worst = w + 0.3 * H @ w / (H @ w).norm()
    assert torch.allclose(model.weight[0], w - 0.1 * H @ worst, rtol=0, atol=1e-11)


@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_a_hand_written_loop(adaptive: bool) -> None:
    ours, theirs, batch = conv_net(), conv_net(), images()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    recipe = wp.Recipe(SAM(rho=0.2, adaptive=adaptive)).attach(ours, wp.Classify())
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        recipe.step(batch, optimizer)

        reference.zero_grad()
        F.cross_entropy(theirs(batch["x"]), batch["y"]).backward()
        kept = [p.detach().clone() for p in theirs.parameters()]
        scales = [p.detach().abs() + 0.01 if adaptive else torch.ones_like(p) for p in theirs.parameters()]
        flat = torch.cat([(t * p.grad).flatten() for t, p in zip(scales, theirs.parameters(), strict=True)])
        statistics = {k: v.clone() for k, v in theirs.named_buffers()}
        with torch.no_grad():
            for t, p in zip(scales, theirs.parameters(), strict=True):
                p += 0.2 * t * t * p.grad / (flat.norm() + 1e-12)
        reference.zero_grad()
        F.cross_entropy(theirs(batch["x"]), batch["y"]).backward()
        with torch.no_grad():
            for p, k in zip(theirs.parameters(), kept, strict=True):
                p.copy_(k)
            for k, v in theirs.named_buffers():
                v.copy_(statistics[k])  # those of the first pass
        reference.step()
    for (k, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12), k


def test_perturbation_has_radius_rho_and_leaves_its_input() -> None:
    grads = {"a": torch.randn(5, 3, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    kept = copy.deepcopy(grads)
    moved = sam_perturbation(grads, 0.7)
    assert torch.cat([m.flatten() for m in moved.values()]).norm() == pytest.approx(0.7, rel=1e-10)
    assert all(torch.equal(grads[n], kept[n]) for n in grads)


def test_adaptive_perturbation_does_not_see_how_a_layer_is_scaled() -> None:
    """ASAM, Kwon et al., Theorem 1: with eta = 0, w -> A w turns eps into A eps."""
    weights, grads = torch.randn(6).double(), torch.randn(6).double()
    scale = torch.rand(6).double() + 0.5
    plain = sam_perturbation({"w": grads}, 0.5, {"w": weights}, eta=0.0)["w"]
    scaled = sam_perturbation({"w": grads / scale}, 0.5, {"w": weights * scale}, eta=0.0)["w"]
    assert torch.allclose(scaled, scale * plain, rtol=1e-10)


def test_half_precision_gradients_neither_overflow_nor_lose_the_radius() -> None:
    grads = {"w": torch.full((300_000,), 200.0, dtype=torch.float16)}  # squares sum to 1.2e10
    assert sam_perturbation(grads, 1.0)["w"].double().norm() == pytest.approx(1.0, rel=2e-2)


def test_four_microbatches_equal_the_large_batch() -> None:
    def weights(split: int) -> Tensor:
        model, batch = conv_net(), images()
        model[1] = nn.GroupNorm(1, 4).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recipe = wp.Recipe(SAM(rho=0.5)).attach(model, wp.Classify())
        for _ in range(3):
            parts = [
                dict(zip(batch, v, strict=True)) for v in zip(*(v.chunk(split) for v in batch.values()), strict=True)
            ]
            recipe.step(parts, optimizer)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.allclose(weights(1), weights(4), rtol=0, atol=1e-12)


def test_statistics_are_those_of_the_first_pass_and_weights_return() -> None:
    plain, sam, batch = conv_net(), conv_net(), images()
    for model, methods in ((plain, []), (sam, [SAM(rho=0.5)])):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        wp.Recipe(*methods).attach(model, wp.Classify()).step(batch, optimizer)
    for (k, a), b in zip(plain.state_dict().items(), sam.state_dict().values(), strict=True):
        assert torch.equal(a, b), k


def test_trains_a_transformer() -> None:
    torch.manual_seed(0)
    model = Points()
    batch = {"x": torch.randint(7, (12, 5)), "y": torch.arange(12) % 3}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recipe = wp.Recipe(SAM(rho=0.05)).attach(model, wp.Classify())
    losses = [float(recipe.step(batch, optimizer)["total"]) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="rho must be at least 0"):
        SAM(rho=-0.1)
