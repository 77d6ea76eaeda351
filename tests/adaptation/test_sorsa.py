"""SORSA: singular triples of trained weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.adaptation.sorsa import SORSA, SingularAdapter, orthonormality, singular_drift


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


INPUTS = {"conv": (conv, (1, 8, 8)), "transformer": (transformer, (5, 8))}


@pytest.mark.parametrize("kind", INPUTS)
def test_the_function_stays_and_merging_changes_nothing(kind: str) -> None:
    make, shape = INPUTS[kind]
    model, x = make().double(), torch.randn(12, *shape, dtype=torch.float64)
    before = copy.deepcopy(model).eval()(x)
    recipe = wp.Recipe(SORSA(rank=3, strength=0.1)).attach(model, wp.Classify(classes=3))
    torch.testing.assert_close(model.eval()(x), before, rtol=0, atol=1e-12)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("parametrizations.weight.0" in n for n in trained)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)
    adapted = model.eval()(x).detach()
    assert not torch.allclose(adapted, before, atol=1e-3)
    recipe.finish()
    torch.testing.assert_close(model.eval()(x), adapted, rtol=0, atol=1e-12)
    assert list(model.state_dict()) == list(make().state_dict())
    assert all(p.requires_grad for p in model.parameters())


def test_the_change_has_low_rank_and_full_rank_factors_it_all() -> None:
    layer = nn.Linear(9, 7, dtype=torch.float64)
    weight = layer.weight.detach()
    adapter = SingularAdapter(weight, 4)
    torch.testing.assert_close(adapter(adapter.right_inverse(weight)), weight, rtol=0, atol=1e-14)
    assert int(torch.linalg.matrix_rank(adapter.product())) == 4
    best = torch.linalg.matrix_norm(adapter.right_inverse(weight), 2)
    assert float(best) == pytest.approx(float(torch.linalg.svdvals(weight)[4]))  # Eckart-Young: the rest is smallest
    assert float(SingularAdapter(weight, 99).right_inverse(weight).abs().max()) < 1e-13


def test_orthonormality_by_loops_and_gradient() -> None:
    rows = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = sum((float(a @ b) - float(i == j)) ** 2 for i, a in enumerate(rows) for j, b in enumerate(rows))
    assert float(orthonormality(rows)) == pytest.approx(total**0.5, rel=1e-9)
    assert torch.autograd.gradcheck(orthonormality, (rows.requires_grad_(),))
    start = torch.eye(3, 5, dtype=torch.float64).requires_grad_()
    (g,) = torch.autograd.grad(orthonormality(start), start)
    assert torch.equal(g, torch.zeros_like(g))  # and not NaN


def test_the_penalty_is_the_mean_over_all_factors() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    recipe = wp.Recipe(SORSA(rank=2, strength=1.0)).attach(model, wp.Classify(classes=3))
    adapters = [m for m in model.modules() if isinstance(m, SingularAdapter)]
    with torch.no_grad():
        for a in adapters:
            a.left.mul_(2)  # Gram matrices 4 I: a distance of 3 sqrt(2)
    terms = recipe.step({"x": torch.randn(4, 6), "y": torch.arange(4) % 3}, torch.optim.SGD(model.parameters(), lr=0))
    assert float(terms["SORSA"]) == pytest.approx(3 * 2**0.5 / 2, rel=1e-4)


def test_drift_is_zero_for_the_same_weight_and_blind_to_signs() -> None:
    w = torch.randn(6, 5, dtype=torch.float64)
    assert [float(d) for d in singular_drift(w, w, 3)] == pytest.approx([0, 0], abs=1e-12)
    values, vectors = singular_drift(w, 2 * w, 3)
    assert float(values) == pytest.approx(float(torch.linalg.svdvals(w)[:3].mean()))
    assert float(vectors) == pytest.approx(0, abs=1e-12)


def test_which_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    method = SORSA(rank=1, layers=("^[12]$",))
    wp.Recipe(method).attach(model, wp.Classify(classes=2))
    assert method.adapted == ("1", "2")
    with pytest.raises(wp.RecipeError, match="none matches `layers`"):
        wp.Recipe(SORSA(layers=("head",))).attach(nn.Linear(2, 2), wp.Classify(classes=2))
    with pytest.raises(ValueError, match="rank must be at least 0"):
        SORSA(rank=-1)
