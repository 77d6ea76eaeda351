"""N:M sparse training by a continuous pruning function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Task, knob
from ..parts.masks import bake, nm_mask, reparametrise, unshared
from ..parts.quantizers import straight_through
from ..weights._layers import TRANSPOSED, weight_layers

__all__ = ["SSTE", "mvue24", "soft_threshold_nm"]

Mode = Literal["soft", "hard"]


def soft_threshold_nm(weight: Tensor, n: int = 2, m: int = 4, dim: int = 1) -> Tensor:
    """N:M pruning without jumps: each group is soft-thresholded at the largest magnitude it drops.

    Args:
        weight: its size along ``dim`` is a multiple of ``m``.
        n, m: at most n of every m neighbours along ``dim`` stay (fewer at ties).

    Returns:
        sign(w) max(|w| - t, 0), t being the (m - n)-th smallest magnitude of the group; the shape of ``weight``.
        Lipschitz with constant sqrt(1 + n), where hard pruning jumps. Hu, Zhu, Chen 2024 (arXiv 2409.09099), Eq. 6.
    """
    size, kept = weight.abs(), nm_mask(weight, n, m, dim)
    inner = dim + 1 if dim >= 0 else dim
    dropped = torch.unflatten(size.masked_fill(kept, 0.0), dim, (-1, m)).amax(inner, keepdim=True)
    groups = torch.unflatten(weight, dim, (-1, m))
    soft = groups.sign() * (groups.abs() - dropped).clamp_min(0)
    return soft.flatten(inner - 1, inner)


@torch.no_grad()
def mvue24(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """An unbiased 2:4 sparse stand-in of small variance, for gradients of outputs in the product for weight gradients.

    Args:
        x: (..., 4 k); groups of four along the last dimension.
        generator: of the draws, on the device of ``x``.

    Returns:
        two entries of each group, x_i / p_i, the others 0, so that the mean over draws is x. They are drawn one after
        the other in proportion to |x|, and p_i is the exact probability that i is among the two.
    """
    size = torch.unflatten(x.to(torch.promote_types(x.dtype, torch.float32)).abs(), -1, (-1, 4))
    total, tiny = size.sum(-1, keepdim=True), torch.finfo(size.dtype).tiny
    first = size / total.clamp_min(tiny)
    onward = first / (total - size).clamp_min(tiny)
    others = 1 - torch.eye(4, dtype=size.dtype, device=x.device)
    chance = first + size * (onward @ others)
    # drawing in proportion without replacement is a race of exponential clocks with these rates
    clocks = torch.empty_like(size).exponential_(generator=generator)
    chosen = nm_mask((size / clocks).flatten(-2), 2, 4, -1)
    kept = chosen & (x != 0)
    return torch.where(kept, x / chance.flatten(-2).clamp_min(tiny), 0.0).to(x.dtype)


class Pruner(nn.Module):
    """The parametrisation: the trained weight is dense, the layer computes with its pruned image."""

    scale: Tensor

    def __init__(self, weight: Tensor, n: int, m: int, dim: int, mode: Mode) -> None:
        super().__init__()
        self.n, self.m, self.dim, self.mode = n, m, dim, mode
        scale = weight.new_ones(())
        if mode == "soft":
            soft = soft_threshold_nm(weight.detach(), n, m, dim)
            square = soft.square().sum()
            scale = torch.where(square > 0, (weight.detach() * soft).sum() / square, 1.0)
        self.register_buffer("scale", scale)

    def forward(self, w: Tensor) -> Tensor:
        """The pruned weight, with the gradient of the dense one."""
        fixed = w.detach()
        if self.mode == "soft":
            return straight_through(self.scale * soft_threshold_nm(fixed, self.n, self.m, self.dim), w)
        return straight_through(fixed * nm_mask(fixed, self.n, self.m, self.dim), w)


class SSTE(Method, paper="s-ste"):
    r"""S-STE: train N:M sparse from scratch through a pruning function without jumps.

    Computes:
        Of every m weights that meet in one product at most n are not 0: the layer computes with scale * S(w), where S
        subtracts the largest dropped magnitude from all magnitudes of the group, and the scale is the least-squares fit
        to the initial weights of the tensor, then frozen. The gradient goes to the dense weights unchanged. Detaching
        leaves the pruned weights, as hardware wants them.

    Formula:
        S(a)_i = \operatorname{sign}(a_i) \max(|a_i| - t, 0), \quad t = |a|_{(m-n)}
        \tilde W = \beta S(W), \quad \beta = \langle W_0, S(W_0) \rangle / \|S(W_0)\|_F^2
        \partial L / \partial W := \partial L / \partial \tilde W

    Helps:
        Stable masks and optimisation: on digits at 2:4 the training loss ended a quarter lower than with hard pruning,
        at 1:8 half as high, and only half as many weights changed sides late in training.

    Avoid:
        As a means to accuracy on small nets: nothing separates it from mode="hard" on test data, neither at 2:4 nor at
        1:8. Few flips alone are no merit: a decay on pruned weights lowers them more. Tiny first layers: their inputs
        are few, so name the layers. Weights that several layers share stay dense.

    Defaults:
        2 of 4, what tensor cores compute with; soft.

    Cost:
        One pass; a mask of every weight per forward pass. On a CPU a 1024 x 1024 mask took 2 ms, compiled
        0.7, by top-k 11. Training
        is not faster by itself; ``mvue24`` and ``torch.sparse.to_sparse_semi_structured`` are for devices that
        multiply 2:4 matrices.

    Reference:
        Hu, Zhu, Chen 2024, S-STE: Continuous Pruning Function for Efficient 2:4 Sparse Pre-training, arXiv 2409.09099,
        Eqs. 6 to 8. FP8 arithmetic is left out, and so is the sampled gradient (as a function: ``mvue24``).

    Args:
        n: weights kept in each group.
        m: neighbours in a group, along the input dimension.
        mode: "soft", or "hard" for the plain straight-through estimator with the n largest as they are.
        layers: names of linear layers and convolutions; empty: all whose input dimension m divides.
    """

    null = None
    stops = True

    n: int = knob(2, low=1, grid=(1, 2, 3))
    m: int = knob(4, low=2)
    mode: Mode = "soft"
    layers: Sequence[str] = ()

    def check(self) -> None:
        if self.n >= self.m:
            raise ValueError(f"SSTE: n must be below m = {self.m}, got {self.n}")
        if self.mode not in get_args(Mode):
            raise ValueError(f"SSTE: mode must be 'soft' or 'hard', got {self.mode!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        names = nm_layers(self, model, self.m, self.layers)
        reparametrise(
            model,
            names,
            lambda name, w: Pruner(w, self.n, self.m, reduction_dim(model.get_submodule(name)), self.mode),
        )

    def teardown(self, model: nn.Module) -> None:
        bake(model, Pruner)


def reduction_dim(layer: nn.Module) -> int:
    """The dimension of a layer's weight that its inputs are multiplied along."""
    return 0 if isinstance(layer, TRANSPOSED) else 1


def nm_layers(owner: Method, model: nn.Module, m: int, named: Sequence[str]) -> tuple[str, ...]:
    """Layers for groups of m: those named, or all that have their trained weight for themselves and that m divides.

    Raises:
        RecipeError: if a named layer will not do, or there is none.
    """
    who = type(owner).__name__
    able = unshared(model, weight_layers(owner, model))
    sizes = {}
    for name in able:
        layer = model.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        sizes[name] = weight.shape[reduction_dim(layer)]
    fit = tuple(name for name in able if sizes[name] % m == 0)
    for name in named:
        if name not in fit:
            why = f"its input dimension {sizes[name]} is not" if name in sizes else "no trainable weight of its own is"
            raise RecipeError(f"{who} cannot prune '{name}' in groups of {m}: {why} there to be divided by {m}")
    if not fit:
        raise RecipeError(f"{who} found no trainable, unshared weight whose input dimension {m} divides; change m")
    return tuple(named) or fit
