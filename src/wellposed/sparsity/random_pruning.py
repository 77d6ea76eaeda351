"""Random masks at initialisation, with densities chosen layer by layer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Task, knob
from ..parts.masks import Masked, bake, global_magnitude_mask, random_mask, reparametrise, unshared
from ..weights._layers import weight_layers

__all__ = ["RandomPruning", "densities_of_scores", "layer_densities"]

Ratio = Literal["uniform", "er", "erk", "erk+"]


def layer_densities(shapes: Sequence[Sequence[int]], density: float, ratio: Ratio = "erk") -> list[float]:
    """Share of weights that each layer keeps, so that all together keep ``density``.

    Args:
        shapes: of the weights: (out, in) or (out, in, height, width, ...).
        density: share of all weights, in (0, 1].
        ratio: "uniform": the same everywhere. "er" (Erdos-Renyi): in proportion to (out + in) / (out * in). "erk": with
            the kernel's sizes in both, (out + in + h + w) / (out * in * h * w). "erk+": as erk, with the last layer
            dense as far as the total allows.

    Returns:
        densities in [0, 1], one a shape; layers that would exceed 1 are dense, and the others share the rest, which
        meets the total exactly. Evci et al. 2020 (arXiv 1911.11134); erk+: Liu et al. 2022 (arXiv 2202.02643).
    """
    if not 0 < density <= 1:
        raise ValueError(f"layer_densities: density must be above 0 and at most 1, got {density:g}")
    sizes = [torch.Size(s).numel() for s in shapes]
    raw = [1.0 if ratio == "uniform" else _erdos_renyi(s, n, ratio != "er") for s, n in zip(shapes, sizes, strict=True)]
    dense = {len(sizes) - 1} if ratio == "erk+" and sizes[-1] <= density * sum(sizes) and len(sizes) > 1 else set[int]()
    while True:
        budget = density * sum(sizes) - sum(sizes[i] for i in dense)
        rest = sum(r * n for i, (r, n) in enumerate(zip(raw, sizes, strict=True)) if i not in dense)
        factor = budget / rest if rest else 0.0
        over = {i for i, r in enumerate(raw) if i not in dense and factor * r > 1}
        if not over:
            return [1.0 if i in dense else factor * r for i, r in enumerate(raw)]
        dense |= over


def _erdos_renyi(shape: Sequence[int], size: int, kernel: bool) -> float:
    return sum(shape) / size if kernel else (shape[0] + shape[1]) / (shape[0] * shape[1])


def densities_of_scores(scores: Sequence[Tensor], density: float) -> list[float]:
    """Share of each layer among the ``density`` highest scores of all: the ratios of SNIP (|w dL/dw|) and its like."""
    return [float(m.double().mean()) for m in global_magnitude_mask(scores, 1 - density)]


class RandomPruning(Method, paper="random-pruning-init"):
    r"""Random pruning at initialisation: a fixed random mask a layer, trained from scratch.

    Computes:
        Before training each layer gets a random mask with exactly its share of weights; the others are 0 throughout,
        in the forward pass and in the gradient. The shares follow a rule that gives small layers more.

    Formula:
        d_l \propto \frac{n_{out} + n_{in} + k_h + k_w}{n_{out} \, n_{in} \, k_h \, k_w}
        \sum_l d_l N_l = d \sum_l N_l

    Helps:
        As the baseline of every pruning method: what it costs falls with width. On digits at density 0.1 the gap to the
        dense net of equal width fell from 70 points at 16 units to 2 at 256.

    Avoid:
        Narrow nets. Expecting speed: masked weights are multiplied by 0. ERK against uniform densities: right in
        direction, but within noise on MLPs, where ERK equals ER.

    Defaults:
        density 0.1, ERK. ``rescale`` multiplies the initial weights by 1 / sqrt(d_l), which helped a little.

    Cost:
        One pass; a mask of booleans and a product per weight.

    Reference:
        Liu, Chen, Chen, Shen, Mocanu, Wang, Pechenizkiy 2022, The Unreasonable Effectiveness of Random Pruning: Return
        of the Most Naive Baseline for Sparse Training, arXiv 2202.02643. Densities by closed form instead of bisection.
        Ratios by SNIP or GraSP: ``densities_of_scores``. Weights that several layers share stay dense.

    Args:
        density: share of the weights of all masked layers, in (0, 1]; 1 turns it off.
        ratio: "uniform", "er", "erk" or "erk+", see ``layer_densities``.
        rescale: whether the kept weights of a layer are enlarged to keep its variance.
        seed: of the masks.
        layers: names of linear layers and convolutions; empty: all.
    """

    null = {"density": 1.0}

    density: float = knob(0.1, above=0.0, high=1.0, grid=(0.1, 0.2, 0.5))
    ratio: Ratio = "erk"
    rescale: bool = False
    seed: int = 0
    layers: Sequence[str] = ()

    def check(self) -> None:
        if self.ratio not in get_args(Ratio):
            raise ValueError(f"RandomPruning: ratio must be one of {', '.join(get_args(Ratio))}, got {self.ratio!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        able = unshared(model, weight_layers(self, model))
        names = tuple(self.layers) or able
        for name in names or ("one",):
            if name not in able:
                raise RecipeError(
                    f"RandomPruning needs layers with a trainable, unshared weight; '{name}' is not there"
                )
        if self.density == 1:
            return
        weights = [model.get_submodule(name).get_parameter("weight") for name in names]
        shares = dict(zip(names, layer_densities([w.shape for w in weights], self.density, self.ratio), strict=True))
        if self.rescale:
            with torch.no_grad():
                for share, w in zip(shares.values(), weights, strict=True):
                    w.mul_(max(share, 1 / w.numel()) ** -0.5)
        reparametrise(model, names, lambda name, w: Masked(self._mask(name, w, shares[name])))

    def _mask(self, name: str, weight: Tensor, share: float) -> Tensor:
        g = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}".encode()))
        return random_mask(weight.shape, share, g).to(weight.device)

    def teardown(self, model: nn.Module) -> None:
        bake(model, Masked)
