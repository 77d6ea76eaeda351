"""Inner products of all per-sample gradients from one backward pass, in models whose structure allows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from ..core import Method, Task
from ..tasks import Classify, Regress

Layer = nn.Linear | nn.Conv2d
# Of these it is known that no sample meets another. Exact types: a subclass may do anything.
TASKS = (Classify, Regress)
BETWEEN = (
    nn.Sequential, nn.Identity, nn.Flatten, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid,
)  # fmt: skip


class Rowwise:
    """Watches the layers of a plain chain of linear layers and 2-d convolutions; of no other model.

    The gradient of sample i by a linear layer's weight is the product of its input a_i and of the derivative d_i by its
    output, so inner products of two samples' gradients are (a_i . a_j)(d_i . d_j), and one backward pass yields all d.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.handles: list[RemovableHandle] = []
        self.on = False
        self.seen: list[tuple[Layer, Tensor, GradientEdge | None]] = []

    def insert(self, model: nn.Module, task: Task) -> None:
        """Hook the layers, if the model is such a chain (no tied weights, no hooks) and the task keeps rows apart."""
        modules = list(model.modules())
        layers = [m for m in modules if _is_layer(m)]
        known = all(_is_layer(m) or type(m) in BETWEEN for m in modules) and type(task) in TASKS
        owned = sum(len(list(m.parameters())) for m in layers) == len(list(model.parameters()))
        if known and owned and not any(m._forward_hooks or m._forward_pre_hooks for m in modules):
            self.layers = layers
            self.handles = [m.register_forward_hook(self._see, prepend=True) for m in layers]

    def remove(self) -> None:
        """Take all hooks off again."""
        for handle in self.handles:
            handle.remove()
        self.layers, self.handles = [], []

    @contextmanager
    def watching(self, others: Iterable[Method]) -> Iterator[None]:
        """Inside, passes are recorded; not where other methods act on the rows, perhaps by passes of their own."""
        self.on = bool(self.layers) and not any(_acts_on_rows(m) for m in others)
        try:
            yield
        finally:
            self.on, self.seen = False, []

    def _see(self, layer: Layer, args: tuple[Tensor], output: Tensor) -> None:
        if self.on and not torch.compiler.is_compiling():
            edge = get_gradient_edge(output) if output.requires_grad else None
            self.seen.append((layer, args[0].detach(), edge))

    def gramian(self, rows: Tensor) -> Tensor | None:
        """Inner products of the gradients of ``rows`` (B,) by the trained parameters, (B, B); None where unknown."""
        seen, self.seen = self.seen, []
        plain = all(isinstance(m.weight, nn.Parameter) and len(a) == len(rows) for m, a, _ in seen)
        if not seen or [m for m, _, _ in seen] != self.layers or not plain:
            return None
        used = [(m, a, edge) for m, a, edge in seen if edge is not None]
        deltas = torch.autograd.grad(rows.sum(), [e for _, _, e in used], retain_graph=True, allow_unused=True)
        if any(d is None for d in deltas):
            return None
        with torch.autocast(rows.device.type, enabled=False):
            parts = [p for (m, a, _), d in zip(used, deltas, strict=True) for p in _products(m, a, d)]
        return torch.stack(parts).sum(0) if parts else None


def _is_layer(module: nn.Module) -> TypeGuard[Layer]:
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def _acts_on_rows(method: Method) -> bool:
    slots = method.slots()
    return "outputs" in slots or "loss" in slots or ("penalty" in slots and method.scope == "sample")


def _products(layer: Layer, a: Tensor, d: Tensor) -> Iterator[Tensor]:
    """Inner products (B, B) of per-sample gradients by weight and bias, from inputs and derivatives by outputs."""
    dtype = torch.promote_types(d.dtype, torch.float32)
    a, d = a.to(dtype), d.to(dtype)
    if isinstance(layer, nn.Conv2d):
        a = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT  # type: ignore[arg-type]
        d = d.flatten(2).mT
    a, d = (t.reshape(len(t), -1, t.shape[-1]) for t in (a, d))  # (B, positions, features)
    if layer.weight.requires_grad:
        if a.shape[1] == 1:
            yield _squares(a) * _squares(d)
        else:
            yield _squares(d.mT @ a)
    if layer.bias is not None and layer.bias.requires_grad:
        yield _squares(d.sum(1))


def _squares(rows: Tensor) -> Tensor:
    flat = rows.flatten(1)
    return flat @ flat.T
