"""Masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wellposed.parts.masks import (
    Masked,
    bake,
    flip_rate,
    global_magnitude_mask,
    nm_mask,
    random_mask,
    reparametrise,
    ternary,
    top_mask,
    unshared,
)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 4), (1, 8), (3, 8), (2, 16)])
@pytest.mark.parametrize(("shape", "dim"), [((3, 16), 1), ((16, 3), 0), ((2, 16, 3, 3), 1), ((5, 32), -1)])
def test_nm_mask_by_sorting(n: int, m: int, shape: tuple[int, ...], dim: int) -> None:
    w = draw(*shape)
    found = nm_mask(w, n, m, dim).movedim(dim, -1).reshape(-1, m)
    for kept, group in zip(found, w.abs().movedim(dim, -1).reshape(-1, m), strict=True):
        assert sorted(group[kept].tolist()) == sorted(group.tolist())[-n:]


def test_nm_mask_keeps_exactly_n_among_ties() -> None:
    assert nm_mask(torch.ones(1, 8), 2, 4).tolist() == [[True, True, False, False] * 2]
    assert (nm_mask(torch.zeros(3, 32), 3, 16).view(-1, 16).sum(1) == 3).all()
    with pytest.raises(ValueError, match="2:4 sparsity needs a size that 4 divides, got 6"):
        nm_mask(torch.ones(2, 6), 2, 4)


def test_top_mask_is_exact() -> None:
    assert top_mask(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), 2).tolist() == [[False, True], [True, False]]
    assert top_mask(torch.zeros(5, 5), 7).sum() == 7
    assert top_mask(torch.zeros(4), 0).sum() == 0


def test_global_mask_prunes_the_smallest_of_all() -> None:
    weights = [draw(4, 5), 0.1 * draw(10)]
    masks = global_magnitude_mask(weights, 0.4)
    pruned = torch.cat([w[~k].abs() for w, k in zip(weights, masks, strict=True)])
    kept = torch.cat([w[k].abs() for w, k in zip(weights, masks, strict=True)])
    assert len(pruned) == 12
    assert pruned.max() < kept.min()


def test_random_mask_has_the_density_and_repeats() -> None:
    one, two = (random_mask((7, 9), 0.3, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert one.sum() == two.sum() == round(0.3 * 63)
    assert not torch.equal(one, two)
    assert torch.equal(one, random_mask((7, 9), 0.3, torch.Generator().manual_seed(1)))


def test_ternary_and_flips() -> None:
    scores = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    assert ternary(scores, 1.0).tolist() == [-1, 0, 0, 0, 1]
    assert flip_rate(scores > 0, scores > 1) == pytest.approx(1 / 5)


def test_masks_on_layers_and_off_again() -> None:
    one, two, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    two.weight = one.weight
    model = nn.Sequential(one, nn.BatchNorm1d(4), two, head)
    assert unshared(model, ("0", "2", "3")) == ("3",)
    before = list(model.state_dict())
    mask, plain = torch.eye(2, 4).bool(), head.weight.detach().clone()
    reparametrise(model, ("3",), lambda name, weight: Masked(mask))
    assert unshared(model, ("3",)) == ()
    out = head(torch.ones(1, 4))
    trained = dict(model.named_parameters())["3.parametrizations.weight.original"]
    assert torch.equal(torch.autograd.grad(out.sum(), trained)[0], mask.float())
    bake(model, Masked)
    assert torch.equal(head.weight, plain * mask)
    assert torch.equal(head(torch.ones(1, 4)), out)
    assert list(model.state_dict()) == before
