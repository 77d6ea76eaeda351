"""Data with known factors."""

from __future__ import annotations

import torch

from wellposed.papers.factors import blobs, surface


def test_the_blob_is_where_and_as_wide_as_its_factors_say() -> None:
    x, factors = blobs(3, 50)
    assert x.shape == (50, 64)
    assert 0 <= x.min() < x.max() <= 1
    rows = x.view(50, 8, 8)
    places = torch.arange(8.0)
    for i in range(50):
        across, down, width = 2 + 3 * factors[i, 0], 2 + 3 * factors[i, 1], 0.7 + 0.8 * factors[i, 2]
        here = torch.tensor([[float((a - across) ** 2 + (b - down) ** 2) for a in places] for b in places])
        torch.testing.assert_close(rows[i], (-here / (2 * width**2)).exp())
    assert torch.equal(blobs(3, 50)[0], x)
    assert not torch.equal(blobs(4, 50)[0], x)


def test_the_surface_has_two_factors_in_five_directions() -> None:
    x = surface(3, 500).double()
    assert x.mean(0).abs().max() < 1e-6
    sizes = torch.linalg.svdvals(x)
    assert (sizes > 1e-4 * sizes[0]).sum() == 5
    near = (x[:, None] - x).square().sum(-1).topk(6, largest=False).indices[:, 1:]
    local = torch.linalg.svdvals(x[near] - x[:, None])  # a small neighbourhood is nearly flat
    assert (local[:, 2] / local[:, 1]).median() < 0.3
