"""Training which weights of a random net are kept, hidden or inverted, and no weights."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core import Method, RecipeError, Task, knob
from ..parts.masks import bake, reparametrise, ternary, top_mask, unshared
from ..parts.quantizers import straight_through
from ..weights._layers import rows, weight_layers

__all__ = ["SignedSupermask", "mask_stats", "signed_mask"]


@torch.no_grad()
def signed_mask(scores: Tensor, kept: int, signed: bool = True) -> Tensor:
    """The signs of the ``kept`` scores of largest magnitude, 0 elsewhere; unsigned: 1 at the largest scores."""
    if signed:
        return scores.sign() * top_mask(scores.abs(), kept)
    return top_mask(scores, kept).to(scores.dtype)


class Supermask(nn.Module):
    """The parametrisation: trained scores in, the masked constant weights out."""

    base: Tensor

    def __init__(
        self, base: Tensor, start: Tensor, kept: int, threshold: float | None, signed: bool, fan_in: int
    ) -> None:
        super().__init__()
        self.kept, self.threshold, self.signed = kept, threshold, signed
        active = float(self.mask(start).abs().mean()) or 1.0
        self.register_buffer("base", base * (2 / (fan_in * active)) ** 0.5)
        self.start: Tensor | None = start

    def mask(self, scores: Tensor) -> Tensor:
        """-1, 0 or 1 for every weight."""
        if self.threshold is None:
            return signed_mask(scores.detach(), self.kept, self.signed)
        found = ternary(scores.detach(), self.threshold)
        return found if self.signed else found.clamp_min(0)

    def forward(self, scores: Tensor) -> Tensor:
        """The weight that the layer computes with; a score's gradient is the weight's times the constant."""
        return self.base * straight_through(self.mask(scores), scores)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The scores at the start, whatever the weight; later, scores under which the largest weights stay."""
        start, self.start = self.start, None
        return weight * self.base.sign() if start is None else start


@torch.no_grad()
def mask_stats(model: nn.Module) -> dict[str, dict[str, float]]:
    """Shares of weights kept, hidden and inverted, by layer, of a model under ``SignedSupermask``."""
    found = {}
    for name, layer in model.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            stack = layer.parametrizations["weight"]
            assert isinstance(stack, parametrize.ParametrizationList)
            for part in stack:
                if isinstance(part, Supermask):
                    mask = part.mask(stack.original)
                    found[name] = {
                        kind: float((mask == sign).double().mean())
                        for kind, sign in (("kept", 1), ("hidden", 0), ("inverted", -1))
                    }
    return found


class SignedSupermask(Method, paper="signed-supermask"):
    r"""Signed supermask: freeze random weights of one magnitude, and train which to keep, hide or invert.

    Computes:
        W = W0 * M with W0 frozen, its entries +-sigma by the signs of the initial weights, and M in {-1, 0, 1} from a
        trained score per weight: the signs of the scores of largest magnitude in the layer, as many as ``density``
        says, or of all beyond a threshold. Gradients pass the mask unchanged: dL/dS = dL/dW * W0.

    Formula:
        W = W_0 \odot M, \quad M_{ij} = \operatorname{sign}(S_{ij}) \, 1[|S_{ij}| \ge \tau]
        \partial L / \partial S := \partial L / \partial W \odot W_0, \quad \sigma = \sqrt{2 / (n_{in} P(M \ne 0))}

    Helps:
        Tiny models: one bit or two a weight. With 80 % zeros a digits MLP was as accurate as trained densely; with
        95 % it lost 2 points, with 98 % 10 to 20.

    Avoid:
        Expecting more from signs than from keeping and hiding (``signed=False``): nothing separated them on digits at
        equal sparsity and corrected sigma. The optimizer's ordinary learning rate: scores wanted 5e-3 with AdamW.
        A threshold of 0.01 by itself: 97 % of the weights stay active, unless a decay shrinks the scores.

    Defaults:
        density 0.2. Scores are drawn Xavier-uniform, as in the paper; ``threshold=0.01`` is the paper's other mode.

    Cost:
        One pass; a top-k of each layer's scores per forward pass, and the signs as another copy of the weights.

    Reference:
        Koster, Grothe, Rettinger 2022, Signing the Supermask: Keep, Hide, Invert, arXiv 2201.13361. The authors take
        thresholds from a sub-sample of scores, one for each sign; here the layer's largest magnitudes count. Dividing
        sigma by sqrt(density) is essential: without it a net with 5 % of its weights learned 41 % instead of 94.
        Biases and norms are trained, which the paper leaves out; its activation is ELU.

    Args:
        density: share of weights in each layer that is not hidden, in (0, 1].
        threshold: in place of the density, the magnitude beyond which a score counts.
        signed: False: keep or hide, by the largest scores.
        seed: of the scores' draw.
        layers: names of linear layers and convolutions; empty: all.
    """

    null = None
    stops = True

    density: float = knob(0.2, above=0.0, high=1.0, grid=(0.05, 0.2, 0.5))
    threshold: float | None = None
    signed: bool = True
    seed: int = 0
    layers: Sequence[str] = ()

    def check(self) -> None:
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"SignedSupermask: threshold must be at least 0, got {self.threshold:g}")

    def setup(self, model: nn.Module, task: Task) -> None:
        able = unshared(model, weight_layers(self, model))
        if wrong := [name for name in self.layers if name not in able]:
            raise RecipeError(
                f"SignedSupermask cannot mask '{wrong[0]}': it has no trainable, unshared weight of its own"
            )
        if not able:
            raise RecipeError("SignedSupermask found no trainable, unshared weight to mask")
        reparametrise(model, tuple(self.layers) or able, lambda name, w: self._part(name, model.get_submodule(name), w))

    def _part(self, name: str, layer: nn.Module, weight: Tensor) -> Supermask:
        units, fan_in = rows(layer).shape
        bound = (6 / (fan_in + units)) ** 0.5
        g = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}".encode()))
        start = (torch.rand(weight.shape, generator=g, dtype=torch.float64) * 2 - 1) * bound
        base = torch.where(weight.detach() < 0, -torch.ones_like(weight), torch.ones_like(weight))
        kept = max(1, round(self.density * weight.numel()))
        return Supermask(base.detach(), start.to(weight), kept, self.threshold, self.signed, fan_in)

    def teardown(self, model: nn.Module) -> None:
        bake(model, Supermask)
