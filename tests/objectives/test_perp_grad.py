"""PerpGrad: orthogonality, lengths, what is left alone, and models of every kind."""

from __future__ import annotations

import pytest
import torch
from classifiers import fitted
from torch import Tensor, nn

import wellposed as wp
from wellposed.objectives.perp_grad import PerpGrad, nlm_alignment, orthogonal_parts
from wellposed.smoothness.sam import SAM


def tensors(seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((4, 3), (3,), (2, 2, 2))]


def test_each_tensor_by_explicit_loops() -> None:
    grads, weights = tensors(0), tensors(1)
    for g, w, found in zip(grads, weights, orthogonal_parts(grads, weights, rescale=False), strict=True):
        share = sum(float(a) * float(b) for a, b in zip(g.flatten(), w.flatten(), strict=True)) / float(
            w.square().sum()
        )
        assert torch.allclose(found, g - share * w, rtol=1e-13)


@pytest.mark.parametrize("joint", [False, True])
def test_orthogonal_and_as_long_as_before(joint: bool) -> None:
    grads, weights = tensors(0), tensors(1)
    parts = orthogonal_parts(grads, weights, joint=joint)
    if joint:
        grads, weights, parts = ([torch.cat([t.flatten() for t in ts])] for ts in (grads, weights, parts))
    for g, w, p in zip(grads, weights, parts, strict=True):
        assert abs(float((w * p).sum())) < 1e-14 * float(w.norm() * g.norm()) * 10
        assert torch.allclose(p.norm(), g.norm(), rtol=1e-13)


def test_squared_norm_grows_by_the_squared_step() -> None:
    """Under SGD ||w - eta g_perp||^2 = ||w||^2 + eta^2 ||g||^2."""
    model = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    before = model.weight.detach().square().sum()
    recipe = wp.Recipe(PerpGrad()).attach(model, wp.Classify(classes=4))
    recipe.step(
        {"x": torch.randn(8, 6).double(), "y": torch.arange(8) % 4}, torch.optim.SGD(model.parameters(), lr=0.3)
    )
    assert model.weight.grad is not None
    expected = before + 0.09 * model.weight.grad.square().sum()
    assert torch.allclose(model.weight.detach().square().sum(), expected, rtol=1e-12)


def test_gradients_along_the_weights_are_not_blown_up() -> None:
    w = torch.randn(50, generator=torch.Generator().manual_seed(0))
    (left,) = orthogonal_parts([3.7 * w], [w])
    assert left.norm() < 1e-5 * w.norm()


def test_single_entries_zero_weights_and_zero_gradients() -> None:
    one, zero = torch.tensor([2.0]), torch.zeros(3)
    grads = [one, torch.ones(3), zero]
    found = orthogonal_parts(grads, [one, zero, torch.ones(3)])
    for g, f in zip(grads, found, strict=True):
        assert torch.equal(g, f)


def test_half_precision_is_projected_in_float32() -> None:
    g = torch.Generator().manual_seed(0)
    w, grad = (torch.randn(1000, generator=g).bfloat16() for _ in range(2))
    (part,) = orthogonal_parts([grad], [w])
    assert part.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(part.double(), w.double(), dim=0)
    assert abs(cosine) < 1e-3  # the rounding of 1000 entries by 2^-9 each


def test_alignment() -> None:
    params = [nn.Parameter(t) for t in tensors(0)]
    assert nlm_alignment(params) == 0
    for p in params:
        p.grad = -2 * p.detach()
    assert nlm_alignment(params).item() == pytest.approx(1, abs=1e-12)
    weights = tensors(0)
    for p, part in zip(params, orthogonal_parts(tensors(1), weights), strict=True):
        p.grad = part
    assert abs(nlm_alignment(params)) < 1e-14


@pytest.mark.parametrize("kind", ["conv", "transformer"])
@pytest.mark.parametrize("joint", [False, True])
def test_trains(kind: str, joint: bool) -> None:
    losses = fitted(PerpGrad(joint=joint), kind)
    assert losses[-1] < losses[0]


def test_several_dtypes_frozen_and_unused_parameters() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8, dtype=torch.float64), nn.Linear(8, 3)
            self.unused, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x.double()).relu().float() * self.scale)

    torch.manual_seed(0)
    model = Mixed()
    model.first.bias.requires_grad_(False)
    recipe = wp.Recipe(PerpGrad(), SAM()).attach(model, wp.Classify(classes=3))
    groups = [{"params": [p for p in model.parameters() if p.dtype == d]} for d in (torch.float32, torch.float64)]
    recipe.step({"x": torch.randn(6, 4), "y": torch.arange(6) % 3}, torch.optim.SGD(groups, lr=0.0))
    assert model.unused.weight.grad is None
    assert model.scale.grad is not None
    assert model.scale.grad.abs() > 0
    for p in (model.first.weight, model.last.weight):
        assert p.grad is not None
        assert abs((p.grad * p).sum()) < 1e-5 * p.grad.norm() * p.norm()


def test_bad_input() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 3))
    recipe = wp.Recipe(PerpGrad()).attach(model, wp.Classify(classes=3))
    batch = {"x": torch.randint(5, (4, 2)), "y": torch.arange(4) % 3}
    with pytest.raises(ValueError, match="needs dense gradients; make the embedding with sparse=False"):
        recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1))
