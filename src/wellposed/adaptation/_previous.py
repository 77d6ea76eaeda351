"""The model as it was before it learns something new: a frozen copy, and what one of its layers says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Step
from ..core.parallel import bare
from ..core.task import Outputs


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that nothing trains."""
    return deepcopy(bare(model)).eval().requires_grad_(False)


@torch.no_grad()
def said(step: Step, previous: nn.Module) -> Outputs:
    """What the copy says of this batch, in eval mode whatever mode the recipe was put in."""
    if previous.training:
        previous.eval()
    return step.forward(previous)


@contextmanager
def listening(layer: nn.Module) -> Iterator[list[Any]]:
    """Inside, everything the layer puts out is kept, in order."""
    heard: list[Any] = []
    handle = layer.register_forward_hook(lambda module, args, output: heard.append(output))
    try:
        yield heard
    finally:
        handle.remove()


def tensor_of(output: Any) -> Tensor:
    """The first tensor of what a layer put out."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
