"""One row of memory per training example, the same on every rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .parallel import gather, world_size


class PerSample(nn.Module):
    """A table of shape (rows, *shape), addressed by ``batch["index"]``.

    Under data parallelism the written rows of all ranks reach every rank, so a shuffling sampler may show an example
    to another rank next time. Saved with the state dict.

    Args:
        rows: number of training examples; indices are 0 ... rows - 1.
        shape: shape of one row.
        fill: initial value.
    """

    values: Tensor

    def __init__(self, rows: int, *shape: int, fill: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("values", torch.full((rows, *shape), fill))

    def read(self, index: Tensor) -> Tensor:
        """Rows at ``index`` (B,), shape (B, *shape)."""
        return self.values[index]

    @torch.no_grad()
    def write(self, index: Tensor, value: Tensor) -> None:
        """Set the rows at ``index`` to ``value`` (B, *shape)."""
        if world_size() > 1:
            index, value = gather(index), gather(value.detach())
        self.values[index] = value.detach().to(self.values.dtype)
