"""QReg."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.quantization.qreg import QReg, quantization_penalty, rounding_noise


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_noise_has_the_size_of_rounding_errors() -> None:
    """Uniform over one step, with variance D^2 / 12."""
    w = draw(300, 300)
    step = float((w.max() - w.min()) / 31)
    noise = rounding_noise(w, 5, torch.Generator().manual_seed(0))
    assert noise.abs().max() <= step / 2
    assert noise.square().mean().item() == pytest.approx(step**2 / 12, rel=0.02)
    error = (w - w.min()).div(step).round() * step + w.min() - w
    assert error.square().mean().item() == pytest.approx(step**2 / 12, rel=0.02)


def test_penalty_of_a_quadratic_is_exact() -> None:
    """Loss 1/2 sum h w^2 over two tensors: each adds D^2 / 24 times its own sum of h."""
    weights = {"a": draw(6).requires_grad_(), "b": draw(4, seed=1).requires_grad_()}
    h = {"a": torch.arange(1.0, 7.0, dtype=torch.float64), "b": torch.ones(4, dtype=torch.float64)}

    def loss() -> Tensor:
        return torch.stack([(h[n] * w.square()).sum() / 2 for n, w in weights.items()]).sum()

    wanted = 0.0
    for n, w in weights.items():
        step = float((w.max() - w.min()).detach() / 15)
        wanted += step**2 / 24 * float(h[n].sum())
    assert quantization_penalty(loss, weights, 4, samples=1) == pytest.approx(wanted, rel=1e-12)
    ratio = quantization_penalty(loss, weights, 4, 1) / quantization_penalty(loss, weights, 5, 1)
    assert ratio == pytest.approx((31 / 15) ** 2, rel=1e-12)


def test_penalty_is_the_mean_rise_of_a_smooth_net() -> None:
    """Antithetic noise cancels the first order; the scatter of the trace estimate is within a tenth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = draw(30, 4), torch.arange(30) % 3
    weights = {n: p for n, p in model.named_parameters() if p.ndim == 2}

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    predicted = quantization_penalty(loss, dict(weights), 6, samples=400, generator=torch.Generator().manual_seed(0))
    g, rises = torch.Generator().manual_seed(1), []
    with torch.no_grad():
        plain, kept = float(loss()), {n: p.clone() for n, p in weights.items()}
        for _ in range(400):
            noise = {n: rounding_noise(w, 6, g) for n, w in kept.items()}
            for sign in (1, -1):
                for n, p in weights.items():
                    p.copy_(kept[n] + sign * noise[n])
                rises.append(float(loss()) - plain)
    assert sum(rises) / len(rises) == pytest.approx(predicted, rel=0.15)


def conv() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    ), torch.randn(12, 1, 8, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(12, 5, 8)


@pytest.mark.parametrize("build", [conv, transformer])
@pytest.mark.parametrize("symmetric", [False, True])
def test_trains_and_ships_few_values(build: Any, symmetric: bool) -> None:
    torch.manual_seed(0)
    model, x = build()
    recipe = wp.Recipe(QReg(bits=3, symmetric=symmetric)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)["task"] for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]
    recipe.detach()
    counts = [len(set(m.weight.flatten().tolist())) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert max(counts) <= 8


def test_noise_is_drawn_once_an_update_and_not_in_evaluation() -> None:
    torch.manual_seed(0)
    model, x = conv()
    plain = model[0].weight.detach().clone()  # type: ignore[index]
    recipe = wp.Recipe(QReg(bits=3, mode="noise"), seed=1).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: list[Tensor] = []
    model[0].register_forward_pre_hook(lambda layer, args: seen.append(layer.weight.detach()))  # type: ignore[index]
    batch = {"x": x, "y": torch.arange(12) % 3}
    halves = [{k: v[:6] for k, v in batch.items()}, {k: v[6:] for k, v in batch.items()}]
    recipe.step(halves, optimizer)
    recipe.step(batch, optimizer)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert (seen[0] - plain).abs().max() <= (plain.max() - plain.min()) / 7 / 2 * (1 + 1e-5)
    with recipe.evaluating() as evaluated:
        evaluated(x)
    assert torch.equal(seen[3], plain)
    recipe.detach()
    assert torch.equal(model[0].weight, plain)  # type: ignore[index]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="'round' or 'noise', got 'floor'"):
        QReg(mode="floor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="symmetric is about rounding"):
        QReg(mode="noise", symmetric=True)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(wp.RecipeError, match="no trainable, unshared weight to quantise"):
        wp.Recipe(QReg()).attach(model, wp.Classify(classes=3))
    with pytest.raises(wp.RecipeError, match="cannot quantise 'head'"):
        wp.Recipe(QReg(layers=("head",))).attach(nn.Linear(3, 3), wp.Classify(classes=3))
