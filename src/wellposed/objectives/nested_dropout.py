"""Nested dropout: features in order of importance, the tail of which is dropped."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..augmentation._dropping import Dropping
from ..core import Method, RecipeError, Task, knob

__all__ = ["NestedDropout", "best_truncation", "keep_first", "kept_lengths", "truncate"]

Distribution = Literal["normal", "geometric"]


def keep_first(x: Tensor, k: Tensor | int, dim: int = 1) -> Tensor:
    """``x`` with all but its first ``k`` entries along ``dim`` set to zero.

    Args:
        x: (B, ...).
        k: how many to keep, a number or one for each sample (B,).
        dim: of the features, not 0.
    """
    place = torch.arange(x.shape[dim], device=x.device).view(-1, *[1] * (x.ndim - 1 - dim % x.ndim))
    kept = k.view(-1, *[1] * (x.ndim - 1)) if isinstance(k, Tensor) else k
    return x * (place < kept)


def kept_lengths(
    count: int, width: int, scale: float, distribution: Distribution = "normal", device: torch.device | None = None
) -> Tensor:
    """Random numbers of features to keep, from 1 to ``width``; drawn from the global generator.

    Args:
        count: how many to draw.
        width: number of features.
        scale: as a share of the width, the standard deviation of "normal", the mean of "geometric".
        distribution: "normal": |N(0, (scale width)^2)| rounded. "geometric": P(k) falls by the same factor from each k
        to
            the next.
    """
    if distribution == "normal":
        drawn = torch.randn(count, device=device).abs().mul(scale * width).round()
    else:
        uniform = 1 - torch.rand(count, device=device)  # in (0, 1]: its logarithm is finite
        drawn = 1 + (uniform.log() / math.log1p(-min(1 / (scale * width), 1 - 1e-7))).floor()
    return drawn.clamp(1, width)


def truncate(model: nn.Module, layer: str, k: int, dim: int = 1) -> RemovableHandle:
    """Keep only the first ``k`` features that a submodule puts out, in every pass from now on.

    Args:
        model: any.
        layer: name of the submodule whose output is cut.
        k: number of features to keep, at least 1.
        dim: of the features.

    Returns:
        a handle whose ``remove()`` undoes it, and which undoes it at the end of a ``with`` block.

    Raises:
        ValueError: if k is below 1.
    """
    if k < 1:
        raise ValueError(f"truncate keeps at least 1 feature, got k={k}")

    def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return keep_first(output, k, dim)

    return model.get_submodule(layer).register_forward_hook(cut)


@torch.no_grad()
def best_truncation(
    model: nn.Module, layer: str, x: Tensor, y: Tensor, lengths: Iterable[int], dim: int = 1
) -> tuple[int, dict[int, float]]:
    """How many features to keep: as many as give the highest accuracy on validation data.

    Args:
        model: a classifier, in eval mode.
        layer: name of the submodule whose output is cut.
        x, y: validation inputs and class ids (N,); their labels may be as noisy as those of the training data.
        lengths: numbers of features to try.
        dim: of the features.

    Returns:
        the best length, the shorter of equals, and the accuracy in [0, 1] of each.

    Raises:
        ValueError: if there is no length to try.
    """
    found = {}
    for k in sorted(set(lengths)):
        with truncate(model, layer, k, dim):
            found[k] = float((model(x).argmax(-1) == y).float().mean())
    if not found:
        raise ValueError("best_truncation needs at least one length to try")
    return max(found, key=lambda k: found[k]), found


class _Cutting(Dropping):
    """Keeps a random number of leading features in training mode; its draws are replayed as dropout's are."""

    def __init__(self, scale: float, distribution: Distribution, dim: int) -> None:
        super().__init__(0.0)
        self.scale, self.distribution, self.dim = scale, distribution, dim

    def forward(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        """The hook."""
        if not module.training:
            return None
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise TypeError(
                f"NestedDropout needs a layer that returns one tensor (B, D, ...), got {type(output).__name__}"
            )
        k = kept_lengths(len(output), output.shape[self.dim], self.scale, self.distribution, output.device)
        return keep_first(output, k, self.dim)


class NestedDropout(Method, paper="nested-dropout-noisy-labels"):
    r"""Nested dropout: only the first features of a random number survive, so that the first learn what matters most.

    Computes:
        In training, of each sample's features f(x) the first k are kept and the rest set to zero, without rescaling; k
        is |N(0, (scale D)^2)| rounded, from 1 to D. Later features are trained more rarely, and what they memorise is
        cut off afterwards: choose the length by ``best_truncation`` on validation data and keep it by ``truncate``.

    Formula:
        \min \; \mathbb{E}_{k \sim \pi} \; \mathrm{CE}\left( W (m_k \odot f(x)), y \right)
        m_k = (1, \ldots, 1, 0, \ldots, 0) \text{ with } k \text{ ones}
        k = \min(D, \max(1, \mathrm{round} \, |\epsilon|)), \qquad \epsilon \sim \mathcal{N}(0, s^2 D^2)

    Helps:
        Wrong labels spread evenly over the classes: digits with 40 % of them, about +14 points with the length chosen
        on validation data that is as noisy. Models that can be cut shorter afterwards: features are in order.

    Avoid:
        Labels that are wrong in one direction only (each class mistaken for one other): no gain was seen. Evaluating
        with all features when the scale is small, for the tail is hardly trained. Plain dropout of 0.5 gained as much
        or more where the order of features is not needed.

    Defaults:
        scale 0.25 of the width, our choice; the paper tunes the absolute standard deviation to each data set.

    Cost:
        One pass; one product with a mask.

    Reference:
        Chen, Hu, Shen, Ai, Suykens 2022, Compressing Features for Learning with Noisy Labels, arXiv 2206.13140. Nested
        dropout with geometric lengths: Rippel, Gelbart, Adams 2014, arXiv 1402.0915. A length is drawn for each sample.
        The paper's second stage, co-teaching of two such nets, is not built in.

    Args:
        layer: name of the submodule whose output goes into the classifier.
        scale: standard deviation ("geometric": mean) of the kept length as a share of the width; above 0. ``math.inf``
            keeps everything.
        distribution: "normal" or "geometric".
        dim: of the features in that output; 1 for (B, D) and (B, C, H, W), -1 for (B, T, D).
    """

    null = {"scale": math.inf}
    exact = False
    example = {"layer": "2"}

    layer: str = knob()
    scale: float = knob(0.25, above=0.0, grid=(0.1, 0.25, 0.5), log=True)
    distribution: Distribution = "normal"
    dim: int = 1

    def check(self) -> None:
        if self.distribution not in get_args(Distribution):
            raise ValueError(f"NestedDropout: distribution must be 'normal' or 'geometric', got {self.distribution!r}")
        if self.dim == 0:
            raise ValueError("NestedDropout: dim must be that of the features, not 0, that of the samples")

    def setup(self, model: nn.Module, task: Task) -> None:
        self.cutting = _Cutting(self.scale, self.distribution, self.dim)
        if not self.layer:
            raise RecipeError("NestedDropout: layer must name the submodule whose output goes into the classifier")
        if self.scale < math.inf:
            self.cutting.insert(self, model, [self.layer])

    def teardown(self, model: nn.Module) -> None:
        self.cutting.remove()
