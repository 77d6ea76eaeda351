"""Dropout put into a model from outside."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from ..core import Method, RecipeError

# Elementwise, and neither a gate nor a probability: zeroing some of their outputs makes sense.
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Softplus, nn.Tanh,
)  # fmt: skip


def dropped(x: Tensor, p: float) -> Tensor:
    """``x`` with entries zeroed with probability ``p``, the others divided by 1 - p."""
    if x.device.type != "cpu":
        return F.dropout(x, p)
    # torch's own draws Bernoulli numbers there, which takes several times as long as uniform ones
    return x * torch.rand(x.shape).ge_(p).mul_(1 / (1 - p)).to(x.dtype)


class Dropping(_DropoutNd):
    """Dropout on the outputs of chosen submodules, by forward hooks.

    A dropout module itself, so the recipe makes its draws, like those of the model's own dropout, a pure function of
    (seed, step, microbatch, rank): extra passes and resumed runs repeat the masks. Silent where the submodule is in
    eval mode, and while ``on`` is False.
    """

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.on = True
        self.handles: list[RemovableHandle] = []

    def insert(self, owner: Method, model: nn.Module, layers: Sequence[str]) -> None:
        """Hook ``layers``, or all activation modules where none are named.

        Raises:
            RecipeError: if a name is unknown, or nothing is named and the model has no activation modules.
        """
        modules = dict(model.named_modules())
        names = layers or [n for n, m in modules.items() if isinstance(m, ACTIVATIONS)]
        who = type(owner).__name__
        if not names:
            raise RecipeError(f"{who} acts after activation modules and the model has none; name submodules in layers=")
        for name in names:
            if name not in modules:
                close = difflib.get_close_matches(name, modules, 3) or [n for n in modules if n][:8]
                raise RecipeError(f"{who}: the model has no submodule '{name}'; it has {', '.join(close)}, ...")
            self.handles.append(modules[name].register_forward_hook(self))

    def remove(self) -> None:
        """Take all hooks off again."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def forward(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        """The hook."""
        if not self.on or not module.training:
            return None
        if not isinstance(output, Tensor):
            raise TypeError(f"dropout needs a submodule that returns a tensor; {type(module).__name__} returns more")
        return dropped(output, self.p)
