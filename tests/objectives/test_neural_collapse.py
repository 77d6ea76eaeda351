"""Neural collapse: both regularisers by loops, the simplex as their optimum, the means' own steps, and metrics."""

from __future__ import annotations

import math

import pytest
import torch
from classifiers import problem
from torch import Tensor, nn

import wellposed as wp
from wellposed.augmentation.mixup import MixUp
from wellposed.objectives.neural_collapse import (
    NeuralCollapse,
    neural_collapse_metrics,
    simplex_etf,
    smallest_angles,
    within_class_scatter,
)
from wellposed.smoothness.sam import SAM


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scatter_by_explicit_loops() -> None:
    h, means, y = normal(9, 5), normal(4, 5, seed=1), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])  # nobody of class 3
    total = 0.0
    for k in range(3):
        members = [i for i in range(9) if y[i] == k]
        total += sum(float((h[i] - means[k]).square().sum()) for i in members) / len(members)
    assert within_class_scatter(h, y, means).item() == pytest.approx(total / 4, rel=1e-13)
    soft = nn.functional.one_hot(y, 4).double()
    assert within_class_scatter(h, soft, means).item() == pytest.approx(total / 4, rel=1e-12)
    h.requires_grad_()
    means.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: within_class_scatter(a, y, b), (h, means))
    assert torch.autograd.gradcheck(lambda a, b: within_class_scatter(a, soft, b), (h, means))


def test_angles_by_explicit_loops() -> None:
    means = normal(5, 3).requires_grad_()
    centred = (means - means.mean(0)).detach()
    total = 0.0
    for k in range(5):
        cosines = [float(centred[k] @ centred[j] / centred[k].norm() / centred[j].norm()) for j in range(5) if j != k]
        total += math.acos(max(cosines))
    assert smallest_angles(means).item() == pytest.approx(total / 5, rel=1e-12)
    assert torch.autograd.gradcheck(smallest_angles, means)


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (4, 3), (10, 16)])
def test_simplex(classes: int, dim: int) -> None:
    points = simplex_etf(classes, dim).double()
    expected = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    assert torch.allclose(points @ points.T, expected, atol=1e-6)
    if classes > 2:
        assert smallest_angles(points).item() == pytest.approx(math.acos(-1 / (classes - 1)), abs=1e-5)


def test_no_means_stand_further_apart_than_a_simplex() -> None:
    """Ascent on the angles alone reaches arccos(-1 / (C - 1)) from below, all cosines equal."""
    best = math.acos(-1 / 5)
    means = normal(6, 8).requires_grad_()
    optimizer = torch.optim.Adam([means], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        optimizer.zero_grad()
        loss = -smallest_angles(means)
        assert -loss.item() <= best + 1e-12
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    unit = nn.functional.normalize(means.detach() - means.detach().mean(0), dim=1)
    cosines = (unit @ unit.T)[~torch.eye(6, dtype=torch.bool)]
    assert (cosines + 1 / 5).abs().max() < 0.01


def attached(*methods: wp.Method) -> tuple[wp.Recipe, dict[str, Tensor], NeuralCollapse]:
    model, task, batch = problem("conv")
    method = NeuralCollapse(layer="3", classes=3, width=144, strength=0.1)
    return wp.Recipe(*methods, method).attach(model, task), batch, method


def test_means_take_the_step_of_the_formula() -> None:
    recipe, batch, method = attached()
    start = method.means.clone().requires_grad_()
    h = recipe.bare[:4](batch["x"]).detach()  # type: ignore[index]
    total = within_class_scatter(h, batch["y"], start) - 10 * smallest_angles(start)
    (slope,) = torch.autograd.grad(total, start)
    terms = recipe.step(batch, torch.optim.SGD(recipe.bare.parameters(), lr=0.0))
    assert terms["NeuralCollapse"].item() == pytest.approx(0.1 * total.item(), rel=1e-5)
    assert torch.allclose(method.means, (start - 3 * 0.1 / 2 * slope).detach(), atol=1e-5)


def test_means_move_once_an_update_and_absent_classes_only_apart() -> None:
    recipe, batch, method = attached(SAM(rho=0.1))
    plain, _, alone = attached()
    optimizer = torch.optim.SGD(recipe.bare.parameters(), lr=0.0)
    recipe.step(batch, optimizer)
    plain.step(batch, torch.optim.SGD(plain.bare.parameters(), lr=0.0))
    assert torch.equal(method.means, alone.means)
    method.separation = 0.0
    before = method.means.clone()
    some = batch["y"] != 2
    recipe.step({k: v[some] for k, v in batch.items()}, optimizer)
    assert torch.equal(method.means[2], before[2])
    assert not torch.equal(method.means[0], before[0])


@pytest.mark.filterwarnings("ignore:.*couples the samples of a batch.*:UserWarning")
def test_means_see_all_microbatches() -> None:
    whole, batch, method = attached()
    parts, _, other = attached()
    whole.step(batch, torch.optim.SGD(whole.bare.parameters(), lr=0.0))
    whole.bare.eval()  # one batch statistic for all
    parts.bare.eval()
    whole.bare.load_state_dict(parts.bare.state_dict())
    method.means.copy_(other.means)
    whole.step(batch, torch.optim.SGD(whole.bare.parameters(), lr=0.0))
    halves = [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 5), slice(5, 12))]
    parts.step(halves, torch.optim.SGD(parts.bare.parameters(), lr=0.0))
    assert torch.allclose(method.means, other.means, atol=1e-6)


@pytest.mark.parametrize(("kind", "layer", "width"), [("conv", "3", 144), ("transformer", "block", 40)])
def test_trains_and_gathers_classes(kind: str, layer: str, width: int) -> None:
    model, task, batch = problem(kind)
    mixing = [MixUp(alpha=0.2)] if kind == "conv" else []  # targets become distributions
    recipe = wp.Recipe(*mixing, NeuralCollapse(layer=layer, classes=3, width=width)).attach(model, task)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    terms = [recipe.step(batch, optimizer) for _ in range(30)]
    assert sum(t["task"] for t in terms[-5:]) < sum(t["task"] for t in terms[:5])
    assert terms[-1]["NeuralCollapse"] < terms[0]["NeuralCollapse"]


def test_metrics_are_zero_at_collapse_and_only_there() -> None:
    corners, y = simplex_etf(4, 6).double(), torch.arange(20) % 4
    at = neural_collapse_metrics(corners[y] + 1, y, 3 * corners, -3 * corners.sum(1))
    assert max(abs(v) for v in at.values()) < 1e-6
    away = neural_collapse_metrics(normal(20, 6), y, normal(4, 6, seed=1))
    assert min(away.values()) > 0.01


def test_bad_input() -> None:
    model, task, batch = problem("conv")
    recipe = wp.Recipe(NeuralCollapse(layer="3", classes=3, width=10)).attach(model, task)
    with pytest.raises(ValueError, match="'3' puts out 144 features, not width=10"):
        recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(wp.RecipeError, match="taps 'head'"):
        wp.Recipe(NeuralCollapse(layer="head", classes=3, width=10)).attach(nn.Sequential(nn.Linear(2, 2)), task)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        smallest_angles(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="dim >= classes - 1, got dim 2"):
        simplex_etf(4, 2)
