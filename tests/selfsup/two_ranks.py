"""A criterion of two views on two ranks against one process, and the small nets on which every criterion is tried."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from wellposed import Recipe
from wellposed.papers.nets import ConvNet, Transformer, seeded
from wellposed.tasks import TwoViews

Criterion = Callable[[Tensor, Tensor], Tensor]


def views(rows: int = 8, width: int = 3, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two noisy copies of the same Gaussian rows, in float64."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, width, generator=g, dtype=torch.float64)
    a, b = (shared + noise * torch.randn(rows, width, generator=g, dtype=torch.float64) for _ in range(2))
    return a, b


def fitted(criterion: Criterion, kind: str, steps: int = 30) -> list[float]:
    """Losses of a conv net with BatchNorm or a transformer, trained on noisy views of 16 inputs."""
    g = torch.Generator().manual_seed(0)
    shape = (16, 64) if kind == "conv" else (16, 6, 4)
    model = seeded(0, ConvNet, 4) if kind == "conv" else seeded(0, Transformer, 6, 4, size=4, width=16, pooled=True)
    x = torch.randn(shape, generator=g)
    recipe = Recipe().attach(model, TwoViews(criterion))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return [
        float(recipe.step({k: x + 0.1 * torch.randn(shape, generator=g) for k in ("x1", "x2")}, optimizer)["task"])
        for _ in range(steps)
    ]


def _trained(model: nn.Module, criterion: Criterion, batch: dict[str, Tensor]) -> Tensor:
    recipe = Recipe().attach(model, TwoViews(criterion))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        recipe.step(batch, optimizer)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _problem() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, dict(zip(("x1", "x2"), views(16, 6), strict=True))


def _worker(rank: int, port: int, file: str, criterion: Criterion) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model, batch = _problem()
    found = _trained(DistributedDataParallel(model), criterion, {k: v.chunk(2)[rank] for k, v in batch.items()})
    if rank == 0:
        torch.save(found, file)
    dist.destroy_process_group()


def gap_of_two_ranks(criterion: Criterion, folder: Path) -> float:
    """Largest difference of the weights after two updates on two ranks from those of one process."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    file = str(folder / "weights.pt")
    spawn(_worker, args=(port, file, criterion), nprocs=2)  # type: ignore[no-untyped-call]
    model, batch = _problem()
    return float((torch.load(file, weights_only=True) - _trained(model, criterion, batch)).abs().max())
