"""Two ranks over gloo equal one process, for every technique that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from problems import METHODS, trial_of
from torch.nn.parallel import DistributedDataParallel

from ranks import on_two_ranks
from wellposed.core.registry import catalogue

STEPS = 2


def worker(rank: int, folder: str, names: list[str]) -> None:
    for name in names:
        for split in (1, 2):
            t = trial_of(name, wrap=DistributedDataParallel)
            t.batch = {k: v.chunk(2)[rank] for k, v in t.batch.items()}
            t.run(STEPS, split=split)
            if rank == 0:
                torch.save(t.weights(), Path(folder) / f"{name}.{split}.pt")
            other = t.weights().clone()
            dist.broadcast(other, 0)
            assert torch.equal(other, t.weights()), f"{name}: the ranks drifted apart"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(worker, str(folder), METHODS)
    return folder


@pytest.mark.filterwarnings("ignore:.*couples the samples of a batch.*:UserWarning")
@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_equal_one_process(name: str, split: int, two_ranks: Path) -> None:
    cls = catalogue()[name]
    found = torch.load(two_ranks / f"{name}.{split}.pt", weights_only=True)
    one = trial_of(name).run(STEPS).weights()
    gap = (found - one).abs().max()
    if cls.exact and (cls.scope != "batch" or split == 1):
        assert gap < 1e-10
    else:
        assert torch.isfinite(gap)
