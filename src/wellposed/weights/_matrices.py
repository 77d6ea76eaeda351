"""The matrices a model multiplies with, and their largest singular values by a running power iteration."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, RecipeError
from ._layers import CONV, LINEAR, TRANSPOSED

NORMS: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Place(NamedTuple):
    """Where a weight is, and how it is read as matrices: ``blocks`` of equally many units below one another.

    Queries, keys and values that attention keeps in one tensor are three matrices.
    """

    layer: str
    name: str
    blocks: int = 1
    transposed: int = 0  # groups of a transposed convolution, whose weight is stored as (in, units / groups, ...)

    def read(self, model: nn.Module) -> Tensor:
        """The weight the layer computes with, differentiable."""
        weight = getattr(model.get_submodule(self.layer), self.name)
        assert isinstance(weight, Tensor)
        return weight


def places(owner: Method, model: nn.Module) -> tuple[Place, ...]:
    """The trained matrices of linear layers, convolutions and attention, tied weights once.

    Raises:
        RecipeError: if there are none.
    """
    found: dict[int, Place] = {}
    for path, module in model.named_modules():
        for place in _of(path, module):
            weight = getattr(module, place.name)
            if isinstance(weight, Tensor) and weight.requires_grad:
                # A reparametrised weight is a new tensor at each look; its layer stands for it.
                found.setdefault(id(weight if isinstance(weight, nn.Parameter) else module), place)
    if not found:
        raise RecipeError(
            f"{type(owner).__name__} acts on weights, and the model has no trainable linear layer or convolution"
        )
    return tuple(found.values())


def _of(path: str, module: nn.Module) -> list[Place]:
    if isinstance(module, LINEAR):
        return [Place(path, "weight")]
    if isinstance(module, CONV):
        return [Place(path, "weight", 1, module.groups if isinstance(module, TRANSPOSED) else 0)]
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            return [Place(path, "in_proj_weight", 3)]
        return [Place(path, f"{part}_proj_weight") for part in "qkv"]
    return []


def unfold(weight: Tensor, place: Place) -> Tensor:
    """The weight as matrices (blocks, units, fan-in), in at least float32."""
    if place.transposed:
        weight = weight.reshape(place.transposed, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    matrices = weight.reshape(place.blocks, len(weight) // place.blocks, -1)
    return matrices.to(torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def leading_vectors(matrices: Tensor, u: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Approximate leading singular vectors by power iteration.

    Args:
        matrices: (blocks, m, n).
        u: left vectors to start from, (blocks, m), of length 1.
        steps: of the iteration, at least 1.

    Returns:
        new u (blocks, m) and v (blocks, n), of length 1; for a matrix of zeros u stays, and v is 0.
    """
    for _ in range(steps):
        v = F.normalize(torch.einsum("bmn,bm->bn", matrices, u), dim=-1)
        product = torch.einsum("bmn,bn->bm", matrices, v)
        norm = torch.linalg.vector_norm(product, dim=-1, keepdim=True)
        u = torch.where(norm > 0, product / norm, u)
    return u, v


def singular_values(matrices: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """u^T W v of each block, shape (blocks,), with u and v held constant: to first order that is no approximation."""
    return torch.einsum("bm,bmn,bn->b", u, matrices, v)


def start(matrices: Tensor, steps: int = 15) -> Tensor:
    """Left vectors (blocks, m) to start from, the same in every process: ``steps`` iterations from a fixed draw."""
    g = torch.Generator().manual_seed(matrices.shape[1])
    u = torch.randn(matrices.shape[:2], generator=g, dtype=torch.float64).to(matrices)
    return leading_vectors(matrices, F.normalize(u, dim=-1), steps)[0]
