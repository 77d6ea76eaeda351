"""InfoMEC scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

from wellposed.generative.infomec import infomec

GRID = torch.cartesian_prod(*[torch.arange(4)] * 3).repeat(4, 1)  # three sources, independent in the very sample


@pytest.mark.parametrize("estimator", ["plug-in", "bins"])
def test_the_sources_themselves_score_1(estimator: Any) -> None:
    found = infomec(GRID.double(), GRID, estimator)
    assert found.modularity == pytest.approx(1, abs=1e-12)
    assert found.compactness == pytest.approx(1, abs=1e-12)
    assert found.explicitness > 0.99
    torch.testing.assert_close(found.nmi, torch.eye(3).double(), rtol=0, atol=1e-12)


def rotation() -> Tensor:
    return torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q


@pytest.mark.parametrize("estimator", ["bins", "knn"])
def test_a_rotation_is_explicit_and_not_modular(estimator: Any) -> None:
    z = GRID.float() @ rotation() + 0.1 * torch.randn(len(GRID), 3, generator=torch.Generator().manual_seed(1))
    found = infomec(z, GRID, estimator, bins=8)
    assert found.modularity < 0.6
    assert found.compactness < 0.6
    assert found.explicitness > 0.7
    assert found.estimator == estimator


def test_by_explicit_loops() -> None:
    g = torch.Generator().manual_seed(0)
    z, s = torch.randint(3, (200, 4), generator=g), torch.randint(4, (200, 2), generator=g)
    z[:, 0] = s[:, 0]
    z[:, 1] = (s[:, 1] + (torch.rand(200, generator=g) < 0.3)) % 4
    z[:, 3] = 7  # does not vary
    found = infomec(z, s)
    nmi = [[mutual_info_score(z[:, i], s[:, j]) / mutual_info_score(s[:, j], s[:, j]) for j in range(2)]
           for i in range(4)]  # fmt: skip
    torch.testing.assert_close(found.nmi, torch.tensor(nmi, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.active.tolist() == [True, True, True, False]
    modularity = sum((max(nmi[i]) / sum(nmi[i]) - 1 / 2) / (1 - 1 / 2) for i in range(3)) / 3
    columns = [[nmi[i][j] for i in range(3)] for j in range(2)]
    compactness = sum((max(c) / sum(c) - 1 / 3) / (1 - 1 / 3) for c in columns) / 2
    assert found.modularity == pytest.approx(modularity)
    assert found.compactness == pytest.approx(compactness)


def test_the_probe_is_balanced_and_its_score_the_cross_entropys() -> None:
    """A latent that is right with probability 0.9 of a source of unequal classes: by the optimal balanced odds."""
    source = torch.tensor([0] * 300 + [1] * 100)
    latent = source.clone()
    latent[:30] = 1
    latent[300:310] = 0
    found = infomec(latent[:, None], source[:, None])
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert found.explicitness == pytest.approx(1 - entropy / math.log(2), abs=1e-3)
    assert found.modularity == found.compactness == 1  # nothing to be apart from
    assert math.isnan(infomec(latent[:, None], source[:, None], probe=False).explicitness)


def test_quiet_latents_do_not_count() -> None:
    z = torch.cat([GRID.double(), 0.01 * GRID[:, :1].double()], 1)
    assert infomec(z, GRID, "knn").active.tolist() == [True, True, True, False]
    assert infomec(z, GRID).active.all()  # quantised: whatever varies
    silent = infomec(torch.cat([GRID, torch.zeros(len(GRID), 1)], 1), GRID)
    assert silent.modularity == pytest.approx(1, abs=1e-12)
    apart = torch.cat([GRID, torch.arange(4).repeat_interleave(64)[:, None]], 1)  # independent of every source
    assert infomec(apart, GRID).modularity == pytest.approx(3 / 4, abs=1e-12)  # of four latents one scores 0


def test_bad_input() -> None:
    z, s = torch.zeros(4, 2), torch.tensor([[0], [1], [0], [1]])
    with pytest.raises(ValueError, match="no latent varies"):
        infomec(z, s)
    with pytest.raises(ValueError, match=r'60 values over 60 samples, .* take estimator="knn" or "bins"'):
        infomec(torch.arange(60.0)[:, None], torch.arange(60)[:, None] % 2)
    broken = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [math.nan, 0.0]])  # would not have counted as active
    with pytest.raises(ValueError, match="z holds NaN"):
        infomec(broken, s)
    with pytest.raises(ValueError, match="estimator must be one of plug-in, bins, knn"):
        infomec(z, s, "mine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"codes are \(N, L\) and sources \(N, S\)"):
        infomec(z, s[:, 0])
    with pytest.raises(ValueError, match="cut continuous sources into bins first"):
        infomec(z, s.float())
    with pytest.raises(ValueError, match="a single class"):
        infomec(z, 0 * s)
    with pytest.raises(ValueError, match="at least 2 bins"):
        infomec(z, s, "bins", bins=1)
