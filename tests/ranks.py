"""Two processes that train together, for tests of what several ranks must have in common."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(rank, *arguments)`` in two processes of one gloo group; what raises there raises here.

    Args:
        work: a function at the top level of a module.
        arguments: whatever can be pickled.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank, args=(port, work, arguments), nprocs=2)  # type: ignore[no-untyped-call, attr-defined]


def _rank(rank: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    work(rank, *arguments)
    dist.barrier()  # a rank that leaves early takes the other's connections with it
    # Without destructors: a group that dies with a DDP wrapper waits, holding the interpreter's lock, for threads that
    # may want that lock.
    os._exit(0)
