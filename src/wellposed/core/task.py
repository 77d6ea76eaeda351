"""Task: what is learned. A forward that yields named outputs, and a loss with one value per sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Batch = Mapping[str, Any]
Outputs = dict[str, Any]


class Task:
    """Base of every task; write ``forward`` and ``loss``, and declare the keys.

    Attributes:
        reads: keys the task takes from a batch.
        yields: keys of the outputs that ``forward`` returns.
        target: what ``batch["y"]`` is, if anything: ``"class"``, ``"multihot"``, ``"real"``, ``"token"`` or None.
        classes: number of classes where that makes sense, else None.
    """

    reads: tuple[str, ...] = ()
    yields: tuple[str, ...] = ()
    target: str | None = None
    classes: int | None = None

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Outputs of ``model`` on ``batch``, by name."""
        raise NotImplementedError

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        """One value per sample, shape (B,)."""
        raise NotImplementedError

    def mean_loss(self, out: Outputs, batch: Batch) -> Tensor:
        """The (weighted) mean of ``loss``; override when a fused form is faster."""
        return weighted_mean(self.loss(out, batch), self.weight(batch))

    def weight(self, batch: Batch) -> Tensor | None:
        """Weight of each sample in means, shape (B,): number of real tokens, say. None: all equal."""
        return None

    def reduce(self, values: Tensor, batch: Batch) -> Tensor:
        """Elementwise values (one per prediction: sample, token, pixel ...) -> one per sample, shape (B,)."""
        return values.flatten(1).mean(1) if values.ndim > 1 else values


def weighted_mean(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over samples; scalars pass through."""
    if rows.ndim == 0:
        return rows
    if weight is None:
        return rows.mean()
    total = weight.sum()
    return (rows * weight).sum() / total.where(total != 0, 1)  # nothing but padding weighs, and costs, nothing


def batch_size(batch: Batch) -> int:
    """Length of the first tensor of the batch."""
    for value in batch.values():
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    raise TypeError("a batch is a mapping of names to tensors with the samples along the first dimension")
