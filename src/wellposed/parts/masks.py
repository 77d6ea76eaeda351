"""Which weights stay: unstructured, N:M, by group, signed; and masks that sit on a layer's weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = [
    "Masked",
    "bake",
    "flip_rate",
    "global_magnitude_mask",
    "nm_mask",
    "random_mask",
    "reparametrise",
    "ternary",
    "top_mask",
    "unshared",
]


# ---- masks: booleans in the shape of a weight, True where it stays
@torch.no_grad()
def top_mask(values: Tensor, k: int) -> Tensor:
    """True at the ``k`` largest entries of a tensor, exactly so many whatever the ties."""
    kept = values.flatten().topk(k, sorted=False).indices
    return (
        torch.zeros(values.numel(), dtype=torch.bool, device=values.device).index_fill_(0, kept, True).view_as(values)
    )


@torch.no_grad()
def global_magnitude_mask(weights: Sequence[Tensor], prune_rate: float) -> list[Tensor]:
    """Which weights stay when the smallest of all together are pruned.

    Args:
        weights: any shapes.
        prune_rate: share pruned, in [0, 1); exactly this share, rounded.

    Returns:
        booleans in the shapes of ``weights``, True where a weight stays.
    """
    size = torch.cat([w.flatten() for w in weights]).abs()
    pruned = size.topk(round(prune_rate * len(size)), largest=False, sorted=False).indices
    kept = torch.ones_like(size, dtype=torch.bool).index_fill_(0, pruned, False)
    return [k.view_as(w) for k, w in zip(torch.split(kept, [w.numel() for w in weights]), weights, strict=True)]


@torch.no_grad()
def nm_mask(weight: Tensor, n: int, m: int, dim: int = 1) -> Tensor:
    """The ``n`` largest magnitudes of every ``m`` neighbours along ``dim``; among equals the first.

    Args:
        weight: its size along ``dim`` is a multiple of ``m``. Dimension 1 is the reduction dimension of linear layers
            and convolutions, where hardware wants the groups.
        n, m: kept, and group size; 1 <= n <= m.

    Returns:
        booleans, exactly ``n`` True in each group. For m up to 8 by comparing pairs, which is several times as fast as
        a top-k on a CPU and fuses when compiled.
    """
    if weight.shape[dim] % m:
        raise ValueError(f"{n}:{m} sparsity needs a size that {m} divides, got {weight.shape[dim]}")
    groups = torch.unflatten(weight.abs(), dim, (-1, m))
    inner = dim + 1 if dim >= 0 else dim
    if m > 8:
        kept = groups.topk(n, dim=inner, sorted=False).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(inner, kept, True).flatten(inner - 1, inner)
    planes = groups.unbind(inner)
    losses = [torch.zeros_like(planes[0], dtype=torch.uint8) for _ in range(m)]
    for i in range(m):
        for j in range(i + 1, m):
            later_wins = planes[j] > planes[i]
            losses[i] = losses[i] + later_wins.to(torch.uint8)
            losses[j] = losses[j] + (~later_wins).to(torch.uint8)
    return torch.stack([lost < n for lost in losses], inner).flatten(inner - 1, inner)


def random_mask(shape: Sequence[int], density: float, generator: torch.Generator) -> Tensor:
    """Exactly ``round(density * size)`` entries True, drawn evenly on the generator's device."""
    return top_mask(
        torch.rand(tuple(shape), generator=generator, device=generator.device), round(density * _size(shape))
    )


@torch.no_grad()
def ternary(scores: Tensor, threshold: float | Tensor) -> Tensor:
    """+1 above the threshold, -1 below its negative, else 0; in the scores' dtype."""
    return scores.sign() * (scores.abs() > threshold)


def flip_rate(before: Tensor, after: Tensor) -> Tensor:
    """Share of entries in which two masks differ, a scalar: how restless a mask is."""
    return (before != after).float().mean()


# ---- masks on layers
class Masked(nn.Module):
    """Parametrisation w -> w * mask with a fixed mask; hidden weights get no gradient and keep their values."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, w: Tensor) -> Tensor:
        """The masked weight."""
        return w * self.mask


def unshared(model: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Those of the named layers whose weight no other module holds, and which nothing reparametrises yet."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for p in module._parameters.values():
            holders[id(p)] = holders.get(id(p), 0) + 1
    found = []
    for name in layers:
        layer = model.get_submodule(name)
        if not parametrize.is_parametrized(layer, "weight") and holders.get(id(layer.weight), 0) == 1:
            found.append(name)
    return tuple(found)


def reparametrise(model: nn.Module, layers: Sequence[str], make: Callable[[str, Tensor], nn.Module]) -> None:
    """Compute the weight of each named layer by ``make(name, weight)``, a module of the trained tensor."""
    for name in layers:
        layer = model.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", make(name, cast(Tensor, layer.weight)))


def bake(model: nn.Module, kind: type[nn.Module]) -> None:
    """Undo ``reparametrise`` by modules of this kind: what the layers compute with becomes their plain weight."""
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            stack = layer.parametrizations["weight"]  # type: ignore[index]
            if any(isinstance(p, kind) for p in stack):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
                for other in [k for k in layer._parameters if k != "weight"]:  # the weight comes first again
                    layer._parameters[other] = layer._parameters.pop(other)


def _size(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
