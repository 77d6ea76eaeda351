"""Two ranks over gloo equal one process, for every technique that says so."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from problems import METHODS, trial_of
from torch.nn.parallel import DistributedDataParallel

from wellposed.core.registry import catalogue

STEPS = 2


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def worker(rank: int, port: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
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
    dist.barrier()  # a rank that leaves early takes the others' connections with it
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(free_port(), str(folder), METHODS), nprocs=2)  # type: ignore[no-untyped-call]
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
