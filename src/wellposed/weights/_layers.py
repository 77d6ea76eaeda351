"""Which weights a penalty or a reparametrisation acts on: those of linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError

LINEAR = (nn.Linear,)
CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def weight_layers(
    owner: Method, model: nn.Module, kinds: tuple[type[nn.Module], ...] = LINEAR + CONV
) -> tuple[str, ...]:
    """Names of the layers of these kinds whose weight is trained, tied weights once.

    Raises:
        RecipeError: if there are none.
    """
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds) and isinstance(module.weight, Tensor) and module.weight.requires_grad:
            # A reparametrised weight is a new tensor at each look; its layer stands for it.
            weight = module.weight if isinstance(module.weight, nn.Parameter) else module
            found.setdefault(id(weight), name)
    if not found:
        wanted = "convolution" if not set(LINEAR) & set(kinds) else "linear layer or convolution"
        raise RecipeError(f"{type(owner).__name__} acts on weights, and the model has no trainable {wanted}")
    return tuple(found.values())


def weight_rows(model: nn.Module, layers: Sequence[str]) -> list[Tensor]:
    """The layers' weights as matrices (units, fan-in), differentiable; what they compute with, if reparametrised."""
    return [rows(model.get_submodule(name)) for name in layers]


def rows(layer: nn.Module) -> Tensor:
    """The weight of a linear layer or convolution as a matrix (units, fan-in), in at least float32."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, TRANSPOSED):  # stored as (in, units / groups, ...)
        weight = weight.reshape(int(layer.groups), -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
