"""Classification: int, soft and multi-hot targets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task
from .targets import cross_entropy, is_class_ids


class Classify(Task):
    """Cross-entropy on ``model(batch["x"])``.

    ``batch["y"]`` holds class ids (B,), distributions (B, C), or with ``multihot=True`` sets of classes as 0/1 (B, C),
    whose loss is the mean binary cross-entropy over classes. A model may return logits, or an object with ``.logits``.

    Args:
        classes: number of classes; needed by methods that mix or store targets.
        multihot: several classes may be true at once.

    Example:
        >>> import torch
        >>> from wellposed import Classify, Recipe
        >>> model = torch.nn.Linear(4, 3)
        >>> recipe = Recipe().attach(model, Classify(classes=3))
        >>> batch = {"x": torch.randn(8, 4), "y": torch.arange(8) % 3}
        >>> sorted(recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1)))
        ['task', 'total']
    """

    reads = ("x", "y")
    yields = ("logits",)

    def __init__(self, classes: int | None = None, *, multihot: bool = False) -> None:
        if classes is not None and classes < 1:
            raise ValueError(f"Classify: classes must be at least 1, got {classes}")
        self.classes, self.multihot = classes, multihot
        self.target = "multihot" if multihot else "class"

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        return {"logits": logits_of(model(batch["x"]))}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        logits, y = out["logits"], batch["y"]
        if self.multihot:
            return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none").mean(-1)
        return cross_entropy(logits, y)

    def mean_loss(self, out: Outputs, batch: Batch) -> Tensor:
        logits, y = out["logits"], batch["y"]
        if not self.multihot and is_class_ids(y) and logits.ndim == 2:
            return F.cross_entropy(logits, y)
        return self.loss(out, batch).mean()

    def __repr__(self) -> str:
        return f"Classify(classes={self.classes}{', multihot=True' if self.multihot else ''})"


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, or an object that carries them."""
    found = getattr(output, "logits", output)
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"the model must return logits or an object with .logits, got {type(output).__name__}")
    return found
