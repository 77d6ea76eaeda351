"""What a layer of the model, or of the model as it was, puts out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


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
