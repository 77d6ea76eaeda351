"""Regression: real targets."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task
from .classify import logits_of

Error = Literal["squared", "absolute", "huber"]


class Regress(Task):
    """Squared, absolute or Huber error of ``model(batch["x"])``.

    ``batch["y"]`` holds reals (B,), or (B, K) for K outputs, whose loss is the mean over outputs. Outputs (B, 1) meet
    targets (B,).

    Args:
        error: ``"squared"`` d^2, ``"absolute"`` |d|, or ``"huber"``: d^2 / 2 for |d| <= delta, else
            delta (|d| - delta / 2); Huber 1964, Robust Estimation of a Location Parameter.
        delta: where Huber's parabola becomes a line, in units of y; above 0.

    Raises:
        ValueError: for another ``error``, a ``delta`` that is not positive, or a prediction whose shape is not y's.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> model = torch.nn.Linear(4, 1)
        >>> recipe = Recipe().attach(model, Regress("huber", delta=1.0))
        >>> batch = {"x": torch.randn(8, 4), "y": torch.randn(8)}
        >>> sorted(recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1)))
        ['task', 'total']
    """

    reads = ("x", "y")
    yields = ("prediction",)
    target = "real"

    def __init__(self, error: Error = "squared", *, delta: float = 1.0) -> None:
        if error not in get_args(Error):
            raise ValueError(f"Regress: error must be one of {', '.join(get_args(Error))}, got {error!r}")
        if not delta > 0:
            raise ValueError(f"Regress: delta must be above 0, got {delta}")
        self.error, self.delta = error, delta

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        prediction, y = logits_of(model(batch["x"])), batch["y"]
        if prediction.shape == (*y.shape, 1):
            prediction = prediction.squeeze(-1)
        return {"prediction": prediction}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        prediction, y = out["prediction"], batch["y"]
        if prediction.shape != y.shape:  # subtracting would broadcast to something that trains and means nothing
            raise ValueError(f"Regress: the prediction has shape {tuple(prediction.shape)}, y has {tuple(y.shape)}")
        d = prediction - y
        if self.error == "squared":
            values = d.square()
        elif self.error == "absolute":
            values = d.abs()
        else:
            size = d.abs()
            values = torch.where(size <= self.delta, d.square() / 2, self.delta * (size - self.delta / 2))
        return self.reduce(values, batch)

    def __repr__(self) -> str:
        return f"Regress({self.error!r}{f', delta={self.delta:g}' if self.error == 'huber' else ''})"
