"""Which axes of which tensors may be permuted together without changing what a model computes."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

Axis = tuple[str, int] | None
"""Of a tensor's axis: the name of the units it runs over, and how many neighbouring entries belong to each unit."""

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
EACH = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU,
    nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardtanh,
)  # fmt: skip
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
EACH_FUNCTION: tuple[Any, ...] = (
    F.relu, F.gelu, F.silu, F.tanh, F.sigmoid, F.elu, F.leaky_relu, F.dropout, F.mish, F.softplus, torch.relu,
    torch.tanh, torch.sigmoid, operator.neg,
)  # fmt: skip
POOL_FUNCTION: tuple[Any, ...] = (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.max_pool1d, F.avg_pool1d)
JOIN: tuple[Any, ...] = (operator.add, operator.sub, operator.mul, operator.iadd, operator.imul, torch.add, torch.mul)
EACH_METHOD = ("relu", "tanh", "sigmoid", "contiguous", "clone", "float", "double")


@dataclass(frozen=True)
class Value:
    """An intermediate result: its axis ``dim`` runs over ``units``, with ``block`` entries for each."""

    units: int
    dim: int
    block: int = 1


class Symmetries:
    """Follows units through the graph of a model. What an unknown operation touches is not permuted, so never wrong."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        traced = fx.symbolic_trace(copy.deepcopy(model).eval())
        with torch.no_grad():
            ShapeProp(traced).propagate(x)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        first: dict[int, str] = {}
        self.first = {n: first.setdefault(id(t), n) for n, t in model.state_dict(keep_vars=True).items()}  # tied: one
        self.parent: list[int] = [0]  # of units; 0 stands for all that stay in place
        self.axes: dict[str, list[tuple[int, int]]] = {}
        self.taps: list[tuple[int, str, int]] = []
        values: dict[fx.Node, Value | None] = {}
        for node in traced.graph.nodes:
            values[node] = self._visit(node, values)

    # ---- union of units
    def find(self, units: int) -> int:
        """The representative."""
        while self.parent[units] != units:
            units = self.parent[units]
        return units

    def join(self, a: int, b: int) -> None:
        """From now on the same units."""
        low, high = sorted((self.find(a), self.find(b)))
        self.parent[high] = low

    def _new(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def _fix(self, value: Value | None) -> None:
        if value is not None:
            self.join(value.units, 0)

    def _mark(self, name: str, *axes: tuple[int, int]) -> None:
        """Say what axes of a tensor run over; said twice, of a layer used twice, both must be one."""
        if name not in self.first:
            return
        name = self.first[name]
        if name not in self.axes:
            self.axes[name] = list(axes)
        for old, new in zip(self.axes[name], axes, strict=True):
            self.join(old[0], new[0] if old[1] == new[1] else 0)

    # ---- the graph
    def _visit(self, node: fx.Node, values: dict[fx.Node, Value | None]) -> Value | None:
        inputs = [values[n] for n in node.all_input_nodes]
        if node.op in ("placeholder", "get_attr"):
            return None
        known: Value | None = None
        handled = False
        if node.op == "call_module" and len(inputs) == 1:
            handled, known = self._module(str(node.target), node, inputs[0])
        elif node.op in ("call_function", "call_method"):
            handled, known = self._function(node, inputs)
        if not handled:
            for value in inputs:
                self._fix(value)
            return None
        if known is not None and node.op == "call_module" and known.block == 1:
            self.taps.append((known.units, str(node.target), known.dim))
        return known

    def _module(self, name: str, node: fx.Node, value: Value | None) -> tuple[bool, Value | None]:
        layer, rank = self.modules[name], len(_shape(node))
        kind = type(layer)
        inside = (value.units, value.block) if value else (0, 1)
        if kind is nn.Linear and (value is None or value.dim == rank - 1):
            units = self._new()
            self._mark(f"{name}.weight", (units, 1), inside)
            self._mark(f"{name}.bias", (units, 1))
            return True, Value(units, rank - 1)
        if kind in CONV and layer.groups == 1 and (value is None or (value.dim == 1 and value.block == 1)):
            units = self._new()
            self._mark(f"{name}.weight", (units, 1), inside, *[(0, 1)] * (rank - 2))
            self._mark(f"{name}.bias", (units, 1))
            return True, Value(units, 1)
        if kind in CONV and layer.groups == layer.in_channels == layer.out_channels and value and value.dim == 1:
            self._mark(f"{name}.weight", inside, (0, 1), *[(0, 1)] * (rank - 2))
            self._mark(f"{name}.bias", inside)
            return True, value
        if kind in TRANSPOSED and layer.groups == 1 and (value is None or (value.dim == 1 and value.block == 1)):
            units = self._new()
            self._mark(f"{name}.weight", inside, (units, 1), *[(0, 1)] * (rank - 2))
            self._mark(f"{name}.bias", (units, 1))
            return True, Value(units, 1)
        last = kind in (nn.LayerNorm, nn.RMSNorm) and len(layer.normalized_shape) == 1
        if value and ((kind in BATCH and value.dim == 1) or (last and value.dim == rank - 1)):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                self._mark(f"{name}.{tensor}", inside)
            return True, value
        if kind in EACH or (kind in POOLS and (value is None or value.dim == 1)):
            return True, value
        if kind is nn.Flatten:
            return self._flat(node, value, int(layer.start_dim), int(layer.end_dim))
        return False, None

    def _function(self, node: fx.Node, inputs: list[Value | None]) -> tuple[bool, Value | None]:
        value, nodes = inputs[0] if inputs else None, node.all_input_nodes
        target: Any = node.target
        if target in EACH_FUNCTION or target in EACH_METHOD:
            return True, value
        if target in POOL_FUNCTION and (value is None or value.dim == 1):
            return True, value
        if target in JOIN:
            return self._join(node, inputs)
        if target in (torch.flatten, "flatten"):
            start, end = _arguments(node, ("start_dim", 0), ("end_dim", -1))
            return self._flat(node, value, start, end)
        shape = _shape(node)
        if target in ("view", "reshape", torch.reshape) and len(shape) == 2 and shape[0] == _shape(nodes[0])[0]:
            return self._flat(node, value, 1, -1)
        if target in ("size", "dim", getattr):
            return True, None  # numbers that know no order
        if target in (torch.mean, "mean", torch.sum, "sum"):
            dims, keep = _arguments(node, ("dim", None), ("keepdim", False))
            return self._reduced(node, value, dims, keep)
        return False, None

    def _join(self, node: fx.Node, inputs: list[Value | None]) -> tuple[bool, Value | None]:
        """Elementwise on two operands: their units are the same."""
        nodes, rank = node.all_input_nodes, len(_shape(node))
        if len(nodes) == 1:
            return True, inputs[0]
        aligned = [
            replace(v, dim=v.dim + rank - len(_shape(n))) if v else None for n, v in zip(nodes, inputs, strict=True)
        ]
        known = next((v for v in aligned if v), None)
        if known is None:
            return True, None
        for other, value in zip(nodes, aligned, strict=True):
            if value is not None:
                if (value.dim, value.block) != (known.dim, known.block):
                    return False, None
                self.join(value.units, known.units)
                continue
            axis = known.dim - rank + len(_shape(other))
            if axis < 0 or _shape(other)[axis] == 1:
                continue  # the same for all units
            if other.op != "get_attr":
                self._fix(known)
                continue
            marks = [(0, 1)] * len(_shape(other))
            marks[axis] = (known.units, known.block)
            self._mark(str(other.target), *marks)
        return True, known

    def _flat(self, node: fx.Node, value: Value | None, start: int, end: int) -> tuple[bool, Value | None]:
        shape = _shape(node.all_input_nodes[0])
        start, end = start % len(shape), end % len(shape)
        if value is None or value.dim > end:
            return True, value and replace(value, dim=value.dim - (end - start))
        if value.dim < start:
            return True, value
        if value.dim > start:
            return False, None
        block = value.block
        for side in shape[start + 1 : end + 1]:
            block *= side
        return True, replace(value, block=block)

    def _reduced(self, node: fx.Node, value: Value | None, dims: Any, keep: bool) -> tuple[bool, Value | None]:
        rank = len(_shape(node.all_input_nodes[0]))
        if value is None:
            return True, None
        gone = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
        if value.dim in gone:
            return True, None  # a sum over all units does not know their order
        return True, value if keep else replace(value, dim=value.dim - sum(d < value.dim for d in gone))


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta: Any = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else ()


def _arguments(node: fx.Node, *wanted: tuple[str, Any]) -> list[Any]:
    """Arguments after the first tensor, by position or name."""
    given = dict(zip((name for name, _ in wanted), node.args[1:], strict=False))
    return [node.kwargs.get(name, given.get(name, default)) for name, default in wanted]


Collected = tuple[dict[str, tuple[Axis, ...]], dict[str, tuple[tuple[str, int], ...]]]


def symmetries(model: nn.Module, x: Tensor, name_of: Callable[[int], str] = "units{}".format) -> Collected:
    """Axes of every tensor that may be permuted, and by units the modules whose outputs run over them.

    Args:
        model: that ``torch.fx`` can trace.
        x: an input.
        name_of: names of units.
    """
    found = Symmetries(model, x)
    axes: dict[str, tuple[Axis, ...]] = {}
    for tensor, name in found.first.items():
        marks = found.axes.get(name, [])
        roots = [(found.find(units), block) for units, block in marks]
        if any(root for root, _ in roots):
            axes[tensor] = tuple((name_of(root), block) if root else None for root, block in roots)
    taps: dict[str, list[tuple[str, int]]] = {}
    for units, module, dim in found.taps:
        if root := found.find(units):
            taps.setdefault(name_of(root), []).append((module, dim))
    return axes, {units: tuple(dict.fromkeys(where)) for units, where in taps.items()}
