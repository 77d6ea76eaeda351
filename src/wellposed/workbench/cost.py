"""What a technique costs: time, peak memory and arithmetic of one training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .rows import Row, baseline
from .trial import Setting, prepare


class Plain:
    """The baseline's step on the same machine at the same moment: what times are compared with."""

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self.step = stepper(setting, baseline(), seed)[0]

    def race(self, other: Callable[[], Any], rounds: int = 5, steps: int = 4) -> tuple[float, float]:
        """Seconds a step of the baseline and of ``other``: medians over interleaved rounds."""
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            for which, step in enumerate((self.step, other)):
                begin = time.perf_counter()
                for _ in range(steps):
                    step()
                times[which].append((time.perf_counter() - begin) / steps)
        return sorted(times[0])[rounds // 2], sorted(times[1])[rounds // 2]


def stepper(setting: Setting, row: Row, seed: int) -> tuple[Callable[[], Any], Any, Any, Any]:
    """A training step of the row on a fixed batch, and its model, recipe and optimizer."""
    model, recipe, optimizer, split = prepare(setting, row, seed, {})
    size = min(setting.batch_size, len(split.x_train))
    batch = {"x": split.x_train[:size], "y": split.y_train[:size], "index": torch.arange(size)}
    return (lambda: recipe.step(batch, optimizer)), model, recipe, optimizer


def dry_run(setting: Setting, row: Row, plain: Plain, seed: int = 0) -> dict[str, Any]:
    """A few steps of a row: proof that it runs here, and what a step costs.

    Returns:
        ``seconds`` of a step and their ratio ``time`` to the baseline's (interleaved), ``memory`` (peak bytes of a
        step: weights, gradients and optimizer state included), ``flops`` of a step (matrix products and convolutions),
        ``passes`` (theoretical forward-backward passes) and ``recipe`` (its repr).

    Raises:
        whatever the technique raises on this data and model.
    """
    step, model, recipe, optimizer = stepper(setting, row, seed)
    for _ in range(3):
        step()
    for p in model.parameters():
        p.grad = None  # gradients are a step's own
    with Meter() as meter:
        step()
    ours, theirs = plain.race(step)[::-1]
    return {
        "seconds": ours,
        "time": ours / theirs,
        "memory": meter.peak + _resident(recipe, optimizer),
        "flops": meter.flops,
        "passes": 1 + sum(m.passes() - 1 for m in recipe.listed),
        "recipe": repr(recipe),
    }


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, over the operations inside, arithmetic (``flops``) and the most bytes of new tensors alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        rule = flop_registry.get(func._overloadpacket)
        if rule is not None:
            self.flops += rule(*args, **kwargs, out_val=out)
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


def _resident(recipe: Any, optimizer: torch.optim.Optimizer) -> int:
    tensors = [p for g in optimizer.param_groups for p in g["params"]]
    tensors += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    tensors += list(recipe.buffers())
    return sum(t.numel() * t.element_size() for t in tensors)
