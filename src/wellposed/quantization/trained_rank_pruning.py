"""Nets of low rank by nature: truncated singular values in training, two small layers afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob

__all__ = ["FactoredLinear", "TrainedRankPruning", "energy_rank", "factorize", "truncate_spectrum"]

Mode = Literal["channel", "spatial"]


def truncate_spectrum(matrix: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    """Drop the smallest singular values that hold no more than a share of the energy.

    Args:
        matrix: (m, n).
        energy: share of sum s_i^2 that may go, in [0, 1); at least one singular value stays.

    Returns:
        the truncated matrix U_k S_k V_k', and U_k V_k', a subgradient of its nuclear norm; both (m, n).
    """
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    kept = _kept(s, energy)
    low = torch.where(kept.all(), wide, (u * (s * kept)) @ vh)  # where nothing goes not a bit changes
    return low.to(matrix.dtype), ((u * kept) @ vh).to(matrix.dtype)


def _kept(s: Tensor, energy: float) -> Tensor:
    tail = s.square().flip(0).cumsum(0).flip(0)
    return (tail > energy * tail[0]) | (torch.arange(len(s), device=s.device) == 0)


def energy_rank(matrix: Tensor, energy: float) -> int:
    """Number of singular values that ``truncate_spectrum`` keeps."""
    return int(
        _kept(torch.linalg.svdvals(matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))), energy).sum()
    )


def unfolded(weight: Tensor, mode: Mode) -> Tensor:
    """A weight as a matrix: (out, rest), or for "spatial" kernels (in * height, out * width)."""
    if mode == "spatial" and weight.ndim == 4:
        return weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
    return weight.flatten(1)


def folded(matrix: Tensor, shape: torch.Size, mode: Mode) -> Tensor:
    """The inverse of ``unfolded``."""
    if mode == "spatial" and len(shape) == 4:
        out, into, height, width = shape
        return matrix.reshape(into, height, out, width).permute(2, 0, 1, 3)
    return matrix.reshape(shape)


def rank_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that a product of two can stand for: linear ones and ungrouped 2D convolutions, shared ones once."""
    found: dict[str, nn.Module] = {}
    weights = set()
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1):
            if id(layer.weight) not in weights:
                found[name] = layer
            weights.add(id(layer.weight))
    return found


class FactoredLinear(nn.Sequential):
    """Two linear layers in place of one; ``weight`` and ``bias`` are those of the one they stand for."""

    @property
    def weight(self) -> Tensor:
        """The product, (out, in)."""
        first, second = cast(nn.Linear, self[0]), cast(nn.Linear, self[1])
        return second.weight @ first.weight

    @property
    def bias(self) -> Tensor | None:
        """Of the second layer."""
        return cast(nn.Linear, self[1]).bias


@torch.no_grad()
def factorize(model: nn.Module, energy: float = 0.02, mode: Mode = "channel", layers: Sequence[str] = ()) -> nn.Module:
    """Replace layers by two smaller ones each, in place, where that saves multiplications.

    Args:
        model: any module; tied weights are better left out (name the layers).
        energy: share of each weight's energy that may go.
        mode: of 2D convolutions: "channel" (k x k to few channels, then 1 x 1) or "spatial" (k x 1, then 1 x k).
        layers: names; empty: all linear layers and ungrouped 2D convolutions.

    Returns:
        the model (a new module if it is itself such a layer).

    Raises:
        RecipeError: if a named layer is of another kind, or there is none.
    """
    able = rank_layers(model)
    for name in layers or (() if able else ("a linear layer or 2D convolution",)):
        if name not in able:
            raise RecipeError(f"factorize needs linear layers or ungrouped 2D convolutions; the model lacks '{name}'")
    for name in layers or able:
        new = _factored(able[name], energy, mode)
        if new is None:
            continue
        if not name:
            return new
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model


def _factored(layer: nn.Module, energy: float, mode: Mode) -> nn.Module | None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    matrix = unfolded(weight, mode)
    rank = energy_rank(matrix, energy)
    if rank * sum(matrix.shape) >= matrix.numel():
        return None
    u, s, vh = torch.linalg.svd(matrix.to(torch.promote_types(matrix.dtype, torch.float32)), full_matrices=False)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * vh[:rank]
    has_bias = layer.bias is not None
    like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    first: nn.Module
    second: nn.Module
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False, **like)
        second = nn.Linear(rank, layer.out_features, bias=has_bias, **like)
        weights, both = (right, left), FactoredLinear(first, second)
    else:
        assert isinstance(layer, nn.Conv2d)
        out, into, height, width = weight.shape
        (sh, sw), (dh, dw), pad = layer.stride, layer.dilation, layer.padding
        pad_h, pad_w = (pad, pad) if isinstance(pad, str) else ((pad[0], 0), (0, pad[1]))
        edge = {**like, "padding_mode": layer.padding_mode}
        if mode == "channel":
            whole: dict[str, Any] = {"stride": (sh, sw), "padding": pad, "dilation": (dh, dw), **edge}
            first = nn.Conv2d(into, rank, (height, width), bias=False, **whole)
            second = nn.Conv2d(rank, out, 1, bias=has_bias, **like)
            weights = right.view(rank, into, height, width), left.view(out, rank, 1, 1)
        else:
            down: dict[str, Any] = {"stride": (sh, 1), "padding": pad_h, "dilation": (dh, 1), **edge}
            across: dict[str, Any] = {"stride": (1, sw), "padding": pad_w, "dilation": (1, dw), **edge}
            first = nn.Conv2d(into, rank, (height, 1), bias=False, **down)
            second = nn.Conv2d(rank, out, (1, width), bias=has_bias, **across)
            weights = (
                left.view(into, height, rank).permute(2, 0, 1).unsqueeze(-1),
                right.view(rank, out, width).permute(1, 0, 2).unsqueeze(2),
            )
        both = nn.Sequential(first, second)  # type: ignore[assignment]
    for part, value in zip((first, second), weights, strict=True):
        part.get_parameter("weight").copy_(value)
        part.get_parameter("weight").requires_grad_(weight.requires_grad)
    if has_bias:
        second.get_parameter("bias").copy_(layer.get_parameter("bias"))
        second.get_parameter("bias").requires_grad_(layer.get_parameter("bias").requires_grad)
    return both.train(layer.training)


class TrainedRankPruning(Method, paper="trained-rank-pruning"):
    r"""Trained rank pruning: truncate singular values while training, so that the net is of low rank by nature.

    Computes:
        Every so many updates, before the forward pass, each weight matrix loses its smallest singular values, as many
        as hold ``energy`` of the sum of squares; training goes on from there. In between the gradient has ``nuclear``
        times a subgradient of the nuclear norm added, that of the last truncation. Afterwards ``factorize`` makes two
        small layers of each.

    Formula:
        k = \min \{ k : \sum_{i > k} s_i^2 \le e \sum_i s_i^2 \}, \quad W \leftarrow U_k S_k V_k^\top
        g \leftarrow \nabla L(W) + \lambda U_k V_k^\top

    Helps:
        Fewer multiplications without fine-tuning: a digits MLP factorises into a fifth of them at 0 to 1.5 points
        of accuracy, where the net trained plainly has nothing to save at the same energy.

    Avoid:
        Comparing with a plain net cut to the same ranks at 2 %: that was as good. Optimizers whose momentum carries
        much past a truncation: it is not projected. Weights shared by layers.

    Defaults:
        energy 0.02, every 20 updates, nuclear 3e-4: the paper's. The authors' code keeps 99 % of the energy, truncates
        at every update and leaves the nuclear term out. All linear layers and 2D convolutions but the last.

    Cost:
        One pass; a singular value decomposition of each matrix in every 20th update.

    Reference:
        Xu, Li, Zhang, Wen, Wang, Qi, Chen, Lin, Xiong 2018, Trained Rank Pruning for Efficient Deep Neural Networks,
        arXiv 1812.02402, Eqs. 5 to 10.

    Args:
        energy: share of the sum of squared singular values that may go, in [0, 1).
        every: updates from one truncation to the next.
        nuclear: factor of the nuclear norm's subgradient.
        mode: how 2D kernels become matrices: "channel" (out x rest) or "spatial" (in height x out width).
        layers: names of linear layers and ungrouped 2D convolutions; empty: all but the last.
    """

    null = {"energy": 0.0, "nuclear": 0.0}
    stops = True

    energy: float = knob(0.02, low=0.0, high=0.99, grid=(0.01, 0.02, 0.05))
    every: int = knob(20, low=1)
    nuclear: float = knob(3e-4, low=0.0)
    mode: Mode = "channel"
    layers: Sequence[str] = ()

    def check(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"TrainedRankPruning: mode must be 'channel' or 'spatial', got {self.mode!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        able = {n: m for n, m in rank_layers(model).items() if m.get_parameter("weight").requires_grad}
        names = tuple(self.layers) or tuple(able)[:-1] or tuple(able)
        for name in names or ("a linear layer or 2D convolution",):
            if name not in able:
                raise RecipeError(
                    "TrainedRankPruning needs trainable linear layers or ungrouped 2D convolutions; "
                    f"the model lacks '{name}'"
                )
        self.names = names
        for i, name in enumerate(names):
            self.register_buffer(f"direction{i}", torch.zeros_like(able[name].get_parameter("weight")))

    def teardown(self, model: nn.Module) -> None:
        for name in [n for n in self._buffers if n.startswith("direction")]:
            del self._buffers[name]

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        if self.energy == 0 == self.nuclear:
            compute()
            return
        weights = [cast(Tensor, step.model.get_submodule(n).weight) for n in self.names]
        if not all(isinstance(w, nn.Parameter) for w in weights):
            raise RecipeError(
                "TrainedRankPruning truncates parameters, and a method listed after it reparametrises "
                f"one of {', '.join(self.names)}; keep one of the two"
            )
        directions = [self.get_buffer(f"direction{i}") for i in range(len(weights))]
        if step.computes == 0 and step.count % self.every == 0:  # not again where another method asks twice
            self._truncate(weights, directions)
        compute()
        grads = [(w.grad, d) for w, d in zip(weights, directions, strict=True) if w.grad is not None]
        if self.nuclear and grads:
            torch._foreach_add_([g for g, _ in grads], [d for _, d in grads], alpha=self.nuclear)

    @torch.no_grad()
    def _truncate(self, weights: Sequence[Tensor], directions: Sequence[Tensor]) -> None:
        for w, direction in zip(weights, directions, strict=True):
            if w.requires_grad:
                low, nuclear = truncate_spectrum(unfolded(w, self.mode), self.energy)
                w.copy_(folded(low, w.shape, self.mode))
                direction.copy_(folded(nuclear, w.shape, self.mode))
