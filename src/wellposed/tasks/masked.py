"""Masked modelling: predict what was hidden from the input."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task
from .classify import logits_of
from .targets import cross_entropy


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each sample's values where ``mask`` is true; 0 for a sample without any.

    Args:
        values: (B, ...).
        mask: same shape, true (or 1) at the values that count.

    Returns:
        shape (B,).
    """
    mask = mask.bool()
    return values.masked_fill(~mask, 0).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


class MaskedModel(Task):
    """Predict the places of ``batch["y"]`` that are hidden in ``batch["x"]``; only they count.

    ``batch["x"]`` is the input as the model shall see it, places already hidden; ``batch["mask"]`` (B, T) is true at
    the hidden places. For ``kind="token"`` ``batch["y"]`` holds the original ids (B, T), the model returns logits
    (B, T, C), and the loss is cross-entropy (Devlin et al. 2018, BERT, arXiv 1810.04805, section 3.1). For
    ``kind="real"`` it holds the original patches (B, T, D), the model returns predictions of that shape, and the loss
    is the mean squared error over D (He et al. 2021, MAE, arXiv 2111.06377, section 3).

    A sample's loss is the mean over its hidden places, its weight their number: uneven microbatches make the update
    of the large batch.

    Args:
        kind: ``"token"`` or ``"real"``.
        classes: size of the vocabulary, for methods that need it; only with tokens.
        visible: whether the model is handed ``batch["visible"]`` (B, K), the places shown, as well, and ``batch["x"]``
            whole: for models that leave the hidden places out, as ``MaskedAutoencoder`` does.

    Raises:
        ValueError: for another ``kind``, or ``classes`` with reals.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> ids = torch.randint(1, 20, (8, 6))                   # 0 is the mask token
        >>> mask = torch.rand(8, 6) < 0.5
        >>> batch = {"x": ids.masked_fill(mask, 0), "y": ids, "mask": mask}
        >>> model = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20))
        >>> recipe = Recipe().attach(model, MaskedModel("token", classes=20))
        >>> sorted(recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1)))
        ['task', 'total']
    """

    reads: tuple[str, ...] = ("x", "y", "mask")

    def __init__(
        self, kind: Literal["token", "real"] = "token", *, classes: int | None = None, visible: bool = False
    ) -> None:
        if kind not in ("token", "real"):
            raise ValueError(f"MaskedModel: kind must be 'token' or 'real', got {kind!r}")
        if kind == "real" and classes is not None:
            raise ValueError("MaskedModel: real targets have no classes; leave classes out")
        self.target, self.classes, self.visible = kind, classes, visible
        if visible:
            self.reads = (*self.reads, "visible")
        self.yields = ("logits",) if kind == "token" else ("prediction",)

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        shown = (batch["visible"],) if self.visible else ()
        return {self.yields[0]: logits_of(model(batch["x"], *shown))}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        y = batch["y"]
        if self.target == "token":
            return self.reduce(cross_entropy(out["logits"], y), batch)
        prediction = out["prediction"]
        if prediction.shape != y.shape:
            raise ValueError(f"MaskedModel: the prediction has shape {tuple(prediction.shape)}, y has {tuple(y.shape)}")
        return self.reduce((prediction - y).square().mean(-1), batch)

    def weight(self, batch: Batch) -> Tensor:
        count: Tensor = batch["mask"].flatten(1).sum(1)
        return count

    def reduce(self, values: Tensor, batch: Batch) -> Tensor:
        return masked_mean(values, batch["mask"])

    def __repr__(self) -> str:
        classes = f", classes={self.classes}" if self.classes else ""
        return f"MaskedModel({self.target!r}{classes}{', visible=True' if self.visible else ''})"
