"""What several passes and several processes need: frozen statistics, replayed noise, averages over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm


def bare(model: nn.Module) -> nn.Module:
    """The module under ``torch.compile`` and ``DistributedDataParallel`` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile's wrapper; its class lives in a slow import
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def world_size() -> int:
    """Number of ranks, 1 without an initialised process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, 0 without an initialised process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_mean(value: float, device: torch.device) -> float:
    """Mean of ``value`` over ranks."""
    if world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    dist.all_reduce(total)
    return total.item() / world_size()


def gather(tensor: Tensor) -> Tensor:
    """Rows of all ranks, concatenated; differentiable. The tensor itself in one process.

    Every rank then computes the same global term, and its gradient, summed over ranks by the gather's backward and
    averaged by DDP, is that of one process with the whole batch. Ranks must hold equal numbers of rows.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def sync(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """DDP averages gradients only in the last microbatch of a window."""
    if now or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[None] = model.no_sync()
    return context


def is_stochastic(model: nn.Module) -> bool:
    """Whether a training pass draws from the global generator: dropout and its kind, and modules that say so.

    A module says so by an attribute ``stochastic`` that is True, as a variational ``Autoencoder`` does.
    """
    for m in model.modules():
        if getattr(m, "stochastic", None) is True:
            return True
        if isinstance(m, _DropoutNd | nn.RReLU):
            return True
        if isinstance(getattr(m, "dropout", None), float) and m.dropout:
            return True
        if type(m).__name__ in {"DropPath", "StochasticDepth"}:
            return True
    return False


@contextmanager
def replayed(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators start from ``seed`` inside and are put back afterwards."""
    cuda = device.type == "cuda"
    kept = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if cuda else None
    torch.default_generator.manual_seed(seed)
    if cuda:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch as in training, but leave running statistics and power iterations alone.

    What keeps statistics of its own (a codebook, say) takes part by an attribute ``track_running_stats``, True while it
    may write.
    """
    active = [m for m in model.modules() if m.training]
    norms: list[Any] = [m for m in active if getattr(m, "track_running_stats", None) is True]
    instance = [(m, m.momentum) for m in norms if isinstance(m, _InstanceNorm)]  # these write whatever the flag says
    spectral = [m for m in active if isinstance(m, _SpectralNorm)]
    hooks = {h for m in active for h in m._forward_pre_hooks.values() if isinstance(h, SpectralNorm)}  # its older form
    iterations = [(h, h.n_power_iterations) for h in hooks]
    for n in norms:
        n.track_running_stats = False
    for i, _ in instance:
        i.momentum = 0.0
    for s in spectral:
        s.training = False
    for h, _ in iterations:
        h.n_power_iterations = 0
    try:
        yield
    finally:
        for n in norms:
            n.track_running_stats = True
        for i, momentum in instance:
            i.momentum = momentum
        for s in spectral:
            s.training = True
        for h, count in iterations:
            h.n_power_iterations = count
