"""What a comparison knows of data and model, filled into the settings that techniques ask everybody for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.modes import evaluating


@dataclass(frozen=True)
class Facts:
    """Of one comparison.

    Attributes:
        rows: training examples.
        classes: of the target; None where it has none.
        inputs: numbers in one input.
        layer: the submodule whose output goes into the last linear layer: the features. None if that is no submodule's.
        features: their number; None likewise.
    """

    rows: int
    classes: int | None
    inputs: int
    layer: str | None = None
    features: int | None = None

    def settings(self, names: set[str]) -> dict[str, Any]:
        """Values for those of a technique's settings that are facts; ``width`` is of the features or of the input."""
        width = self.features if "layer" in names else self.inputs
        known = {"rows": self.rows, "classes": self.classes, "layer": self.layer, "width": width}
        return {k: v for k, v in known.items() if k in names and v is not None}


@torch.no_grad()
def feature_layer(model: nn.Module, x: Tensor) -> tuple[str, int] | None:
    """The name of the submodule whose output the last linear layer reads, and its width.

    Args:
        model: looked at in eval mode on ``x``, and left as it was.
        x: a few inputs.

    Returns:
        None if there is no linear layer, or something else than a submodule's output goes into the last one.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors, so that no two share an id
    heads: list[tuple[str, nn.Linear, Tensor]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.Linear):
                heads.append((name, module, args[0]))
            if isinstance(output, Tensor):
                outputs[id(output)] = name, output  # the last to hand it on: dropout does, when it is off

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name]
    try:
        with evaluating(model):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not heads or id(heads[-1][2]) not in outputs:
        return None
    name, _ = outputs[id(heads[-1][2])]
    return name, heads[-1][1].in_features
