"""Local dimensionality regularisation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.papers.nets import ConvNet, Transformer, seeded
from wellposed.selfsup.ldreg import LDReg, log_local_dimension


def rows(n: int = 12, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_loops(h: Tensor, k: int, estimator: str) -> list[float]:
    logs = []
    for i in range(len(h)):
        r = sorted(float((h[i] - h[j]).norm()) for j in range(len(h)) if j != i)[:k]
        near, radius = r[:-1], r[-1]
        if estimator == "mom":
            mean = sum(near) / len(near)
            logs.append(math.log(mean / (radius - mean)))
        else:
            logs.append(-math.log(-sum(math.log(d / radius) for d in near) / len(near)))
    return logs


@pytest.mark.parametrize("estimator", ["mom", "mle"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_term_by_explicit_loops(estimator: str, norm: str) -> None:
    x = rows()
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2, dtype=torch.float64))
    method = LDReg(layer="0", k=5, estimator=estimator, norm=norm, strength=0.5)  # type: ignore[arg-type]
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=2))
    terms = recipe.step({"x": x, "y": torch.arange(12) % 2}, torch.optim.SGD(model.parameters(), lr=0.0))
    logs = by_loops(x, 5, estimator)
    mean = sum(logs) / 12 if norm == "l1" else (sum(v * v for v in logs) / 12) ** 0.5
    assert terms["LDReg"].item() == pytest.approx(-0.5 * mean, rel=1e-9)


def test_gradient_with_the_neighbours_held_still() -> None:
    x, others = rows(8).requires_grad_(), rows(8)

    def alone(x: Tensor) -> Tensor:
        """The same with the references as constants of their own."""
        distances = (x[:, None] - others).square().sum(-1) + torch.eye(8)
        near = distances.sqrt().masked_fill(torch.eye(8).bool(), torch.inf).sort(1).values[:, :4]
        mean = near[:, :3].mean(1)
        return (mean / (near[:, 3] - mean)).log()

    expected = torch.autograd.grad(alone(x).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(log_local_dimension(x, 4).sum(), x)[0], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_finds_the_dimension_of_a_flat_piece(dimension: int) -> None:
    """At the centre of a Gaussian cloud lying in 10 dimensions; the nearest 50 of 5000 see an almost even density."""
    g = torch.Generator().manual_seed(0)
    cloud = torch.randn(5000, dimension, generator=g) @ torch.linalg.qr(torch.randn(10, dimension, generator=g)).Q.T
    centre = cloud[cloud.norm(dim=1).argsort()[:100]]
    apart = torch.cdist(centre, cloud).sort(1).values[:, 1:51]
    mean = apart[:, :-1].mean(1)
    logs = (mean / (apart[:, -1] - mean)).log()
    found = log_local_dimension(cloud, 50)[cloud.norm(dim=1).argsort()[:100]]
    torch.testing.assert_close(found, logs, rtol=1e-2, atol=1e-3)
    assert found.mean().exp().item() == pytest.approx(dimension, rel=0.15)  # 1 / sqrt(49) a point; neighbours overlap


@pytest.mark.parametrize("kind", ["conv", "transformer"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_keeps_the_local_dimension_up(kind: str, norm: str) -> None:
    """Against training without it, which flattens neighbourhoods."""
    g = torch.Generator().manual_seed(0)
    if kind == "conv":
        model: nn.Module = seeded(0, ConvNet, 3, width=4)
        layer, x = "features_", torch.rand(24, 64, generator=g)
    else:
        model = seeded(0, Transformer, 5, 3, size=4, width=8, pooled=True)
        layer, x = "blocks", torch.rand(24, 5, 4, generator=g)
    batch = {"x": x, "y": torch.arange(24) % 3}
    start, ends = copy.deepcopy(model.state_dict()), []
    for strength in (1e-6, 1.0):
        model.load_state_dict(start)
        method = LDReg(layer=layer, k=8, norm=norm, strength=strength)  # type: ignore[arg-type]
        recipe = wp.Recipe(method).attach(model, wp.Classify(classes=3))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        terms = [float(recipe.step(batch, optimizer)["LDReg"]) / strength for _ in range(60)]
        recipe.detach()
        ends.append(-terms[-1])
    assert ends[1] > ends[0] + 0.5


def test_small_batches_and_bad_settings() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
    recipe = wp.Recipe(LDReg(layer="0")).attach(model, wp.Classify(classes=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert recipe.step({"x": torch.rand(3, 3), "y": torch.zeros(3).long()}, optimizer)["LDReg"].isfinite()
    with pytest.raises(ValueError, match="at least 2 neighbours"):
        recipe.step({"x": torch.rand(2, 3), "y": torch.zeros(2).long()}, optimizer)
    same = recipe.step({"x": torch.ones(5, 3), "y": torch.zeros(5).long()}, optimizer)  # nothing but duplicates
    assert same["LDReg"].isfinite()
    with pytest.raises(ValueError, match="norm must be 'l1' or 'l2', got 'l3'"):
        LDReg(layer="0", norm="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="estimator must be 'mom' or 'mle', got 'x'"):
        LDReg(layer="0", estimator="x")  # type: ignore[arg-type]
