"""Language modelling: the next token at every place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task
from .classify import logits_of
from .masked import masked_mean
from .targets import cross_entropy

IGNORED = -100  # the target of padding, as in torch.nn.functional.cross_entropy


class NextToken(Task):
    """Cross-entropy of the next token, on logits (B, T, V) = ``model(batch["x"])``.

    ``batch["x"]`` holds ids (B, T) and ``batch["y"]`` the ids that follow (B, T): of texts ``ids`` these are
    ``ids[:, :-1]`` and ``ids[:, 1:]``. Places where y is -100 (padding, a prompt) do not count. A model may return
    logits, or an object with ``.logits``.

    A sample's loss is the mean over its tokens, its weight their number. So every token of an update counts the same,
    however the update was cut into microbatches.

    Args:
        classes: size of the vocabulary V, for methods that need it.

    Raises:
        ValueError: if ``classes`` is below 1.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> ids = torch.randint(20, (8, 7))
        >>> model = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20))
        >>> recipe = Recipe().attach(model, NextToken(classes=20))
        >>> batch = {"x": ids[:, :-1], "y": ids[:, 1:]}
        >>> sorted(recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1)))
        ['task', 'total']
    """

    reads = ("x", "y")
    yields = ("logits",)
    target = "token"

    def __init__(self, classes: int | None = None) -> None:
        if classes is not None and classes < 1:
            raise ValueError(f"NextToken: classes must be at least 1, got {classes}")
        self.classes = classes

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        return {"logits": logits_of(model(batch["x"]))}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        return self.reduce(cross_entropy(out["logits"], batch["y"]), batch)

    def mean_loss(self, out: Outputs, batch: Batch) -> Tensor:
        y = batch["y"].flatten()
        total = F.cross_entropy(out["logits"].flatten(0, -2), y, ignore_index=IGNORED, reduction="sum")
        return total / (y != IGNORED).sum().clamp(min=1)

    def weight(self, batch: Batch) -> Tensor:
        count: Tensor = (batch["y"] != IGNORED).sum(1)
        return count

    def reduce(self, values: Tensor, batch: Batch) -> Tensor:
        return masked_mean(values, batch["y"] != IGNORED)

    def __repr__(self) -> str:
        return f"NextToken(classes={self.classes})"
