"""Clipping: direction kept, norm bounded, and where it stands among wrappers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.optimizers.gradient_clipping import GradientClipping, adaptive_max_norm, clip_gradients
from wellposed.smoothness.sam import SAM


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def images() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": 3 * torch.randn(12, 1, 8, 8, generator=g, dtype=torch.float64), "y": torch.arange(12) % 3}


def step_of(*methods: wp.Method, split: int = 1) -> Tensor:
    """What one SGD step with learning rate 1 subtracted."""
    model, batch = conv_net(), images()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    recipe = wp.Recipe(*methods).attach(model, wp.Classify())
    parts = [dict(zip(batch, v, strict=True)) for v in zip(*(v.chunk(split) for v in batch.values()), strict=True)]
    recipe.step(parts, torch.optim.SGD(model.parameters(), lr=1.0))
    return before - torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("max_norm", [0.01, 0.3, 1e3])
def test_equals_torch(max_norm: float) -> None:
    torch.manual_seed(0)
    ours, theirs = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5))], []
    for p in ours:
        p.grad = torch.randn_like(p)
        theirs.append(nn.Parameter(p.detach().clone()))
        theirs[-1].grad = p.grad.clone()
    norm = clip_gradients([p.grad for p in ours], max_norm)
    assert torch.allclose(norm, nn.utils.clip_grad_norm_(theirs, max_norm))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=2e-6 / min(max_norm, 0.5))  # torch adds 1e-6 to the norm


def test_keeps_the_direction_and_bounds_the_norm() -> None:
    plain, clipped = step_of(), step_of(GradientClipping(max_norm=0.1))
    assert plain.norm() > 0.1
    assert clipped.norm() == pytest.approx(0.1, rel=1e-12)
    assert torch.cosine_similarity(plain, clipped, 0) == pytest.approx(1.0, abs=1e-14)
    assert torch.equal(step_of(GradientClipping(max_norm=1e4)), plain)  # short gradients are left alone, bit for bit


def test_first_listed_clips_the_final_gradient() -> None:
    sam = step_of(SAM(rho=0.5))
    outermost = step_of(GradientClipping(max_norm=0.1), SAM(rho=0.5))
    assert torch.allclose(outermost, 0.1 * sam / sam.norm(), rtol=0, atol=1e-13)
    inner = step_of(SAM(rho=0.5), GradientClipping(max_norm=0.1))
    assert torch.allclose(inner, outermost, rtol=0, atol=1e-10)  # SAM normalises, so here only the floor 1e-12 differs


def test_clips_the_accumulated_gradient_not_its_parts() -> None:
    model, batch = conv_net(), images()
    model[1] = nn.GroupNorm(1, 4).double()
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    recipe = wp.Recipe(GradientClipping(max_norm=0.1)).attach(model, wp.Classify())
    found = []
    for split in (1, 4):
        model.load_state_dict(kept)
        parts = [dict(zip(batch, v, strict=True)) for v in zip(*(v.chunk(split) for v in batch.values()), strict=True)]
        recipe.step(parts, torch.optim.SGD(model.parameters(), lr=1.0))
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*found, rtol=0, atol=1e-14)


def test_zero_half_and_mixed_gradients() -> None:
    zero = torch.zeros(3)
    assert clip_gradients([zero], 1.0) == 0
    assert torch.equal(zero, torch.zeros(3))
    mixed = [torch.full((300_000,), 200.0, dtype=torch.float16), torch.ones(2, dtype=torch.float64)]
    assert clip_gradients(mixed, 1.0) == pytest.approx(200 * math.sqrt(300_000), rel=1e-6)
    assert mixed[0].double().norm() == pytest.approx(1.0, rel=1e-2)
    assert clip_gradients([], 1.0) == 0


def test_percentile() -> None:
    norms = torch.arange(101.0)[torch.randperm(101)]
    assert adaptive_max_norm(norms, 90) == pytest.approx(90)
    for bad in ((norms, 101), (norms[:0], 50)):
        with pytest.raises(ValueError, match="percentile in 0 to 100"):
            adaptive_max_norm(*bad)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        GradientClipping(max_norm=0.0)
