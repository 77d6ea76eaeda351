"""Every criterion of two views: two ranks give the weights of one process with the whole batch."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from pairs import Criterion, views
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ranks import on_two_ranks
from wellposed import Recipe
from wellposed.selfsup.barlow_twins import barlow_twins
from wellposed.selfsup.i_con import icon_views
from wellposed.selfsup.w_mse import w_mse
from wellposed.tasks import TwoViews

CRITERIA: dict[str, Criterion] = {
    "icon_views": icon_views,
    "barlow_twins": barlow_twins,
    "w_mse": w_mse,
    "w_mse.joint": partial(w_mse, joint=True),
}


def trained(criterion: Criterion, rank: int | None = None) -> Tensor:
    """Weights after two updates with all rows, or those of one rank."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    batch = dict(zip(("x1", "x2"), views(16, 6), strict=True))
    if rank is not None:
        model, batch = DistributedDataParallel(model), {k: v.chunk(2)[rank] for k, v in batch.items()}
    recipe = Recipe().attach(model, TwoViews(criterion))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        recipe.step(batch, optimizer)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def worker(rank: int, folder: str) -> None:
    for name, criterion in CRITERIA.items():
        found = trained(criterion, rank)
        if rank == 0:
            torch.save(found, Path(folder) / name)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(worker, str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CRITERIA)
def test_two_ranks_see_the_samples_of_both(name: str, ranks: Path) -> None:
    found = torch.load(ranks / name, weights_only=True)
    torch.testing.assert_close(found, trained(CRITERIA[name]), rtol=0, atol=1e-12)
