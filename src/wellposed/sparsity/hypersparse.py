"""Dense to sparse training by a penalty that spares the weights that will stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Exponential, Method, Step, Task, knob
from ..core.schedules import Scalar
from ..parts.masks import global_magnitude_mask
from ..weights._layers import weight_layers

__all__ = ["HyperSparse", "global_magnitude_mask", "hypersparse_loss"]

INFLECTION = math.atanh(1 / math.sqrt(3))  # where the slope of tanh falls fastest, 0.65848


def hypersparse_loss(weights: Sequence[Tensor], prune_rate: float) -> Tensor:
    """A penalty of value 0 whose gradient shrinks small weights and nearly spares large ones.

    Args:
        weights: all prunable weights, any shapes.
        prune_rate: share of them, kappa, that is to be pruned, in (0, 1).

    Returns:
        sum |w| * (T / T' - 1), with T = sum tanh(s |w|), s = 0.65848 / w_kappa, w_kappa the kappa-quantile of |w| over
        all weights together, and T' = T, sum |w| and s held constant. So dL/dw = sign(w) (sum |w|) s / (T cosh^2(s w)):
        a weight at the quantile is pulled 1.5 times less than one at 0. Glandorf et al. 2023 (arXiv 2308.07163).
    """
    size = torch.cat([w.flatten() for w in weights])
    size = size.to(torch.promote_types(size.dtype, torch.float32)).abs()
    total = size.detach().sum()
    tiny = torch.finfo(size.dtype).tiny ** 0.5
    quantile = _smallest(size.detach(), max(1, round(prune_rate * len(size))))
    reached = torch.tanh(size * (INFLECTION / quantile.clamp_min(tiny))).sum()
    return total * (reached / reached.detach().clamp_min(tiny) - 1)


def _smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest of ``values`` (n,), a scalar."""
    if values.device.type != "cpu":
        return values.kthvalue(k).values
    return torch.from_numpy(np.partition(values.numpy(), k - 1))[k - 1]  # selects several times as fast as torch


class HyperSparse(Method, paper="hypersparse-art"):
    r"""HyperSparse: train dense towards a given sparsity, then prune and fine-tune (adaptive regularized training).

    Computes:
        Until ``prune_at``, strength(t) * a penalty of value 0 whose gradient is nearly that of an L1 norm for weights
        below the pruning threshold and fades for large ones; its strength grows geometrically. At ``prune_at`` the
        smallest weights of all layers together are set to 0, and stay 0 while training goes on.

    Formula:
        T = \sum_i \tanh (s |w_i|), \qquad s = \frac{\mathrm{artanh}(1 / \sqrt 3)}{w_\kappa}
        w_\kappa \; \text{the} \; \kappa \text{-quantile of} \; |w|
        \frac{\partial R}{\partial w} = \lambda(t) \, \mathrm{sign}(w) \frac{s \, \lVert w \rVert_1}{T \cosh^2 (s w)}

    Helps:
        Very sparse nets (98 % and more): accuracy right after pruning and after fine-tuning, against magnitude
        pruning of a net trained plainly or with L2 (by 49 and 30 points on a small MLP at 98 %).

    Avoid:
        Expecting more than from a tuned L1 penalty or gradual magnitude pruning: nothing separates them on small
        nets. At 95 % sparsity everything works. Strengths do not transfer between sizes of nets (the sums grow with
        the number of weights).

    Defaults:
        prune_rate 0.9; the strength grows from 5e-6 by 5 % an epoch, the paper's, over 100 epochs. It is a schedule of
        all of training, cut off at ``prune_at``: 0.7 here, where the paper waits until the pruned net is as accurate as
        the dense one. A small net trained briefly needed 7e-3 at that point: Exponential(1e-5, 0.1).

    Cost:
        One pass; a quantile of all weights per update.

    Reference:
        Glandorf, Kaiser, Rosenhahn 2023, HyperSparse Neural Networks: Shifting Exploration to Exploitation through
        Adaptive Regularization, arXiv 2308.07163. Weights of linear layers and convolutions only.

    Args:
        prune_rate: share of the weights pruned, in [0, 1); 0 turns everything off.
        prune_at: share of training after which the smallest weights are removed for good, in [0, 1].
        strength: factor of the penalty; a schedule needs the length of training.
    """

    scope = "params"
    null = {"prune_rate": 0.0}
    stops = True

    prune_rate: float = knob(0.9, low=0.0, high=0.9999)
    prune_at: float = knob(0.7, low=0.0, high=1.0)
    strength: Scalar = knob(
        Exponential(5e-6, 6.6e-4, stages=100),
        low=0.0,
        grid=(Exponential(5e-6, 6.6e-4, stages=100), Exponential(1e-5, 7e-3), Exponential(1e-5, 0.1)),
    )

    def setup(self, model: nn.Module, task: Task) -> None:
        layers = weight_layers(self, model)
        self.edits = tuple(f"{layer}.weight".lstrip(".") for layer in layers)
        weights = [cast(Tensor, model.get_submodule(layer).weight) for layer in layers]
        total = sum(w.numel() for w in weights)
        self.register_buffer("kept", torch.ones(total, dtype=torch.bool, device=weights[0].device))
        self.pruned = False

    def penalty(self, step: Step) -> Tensor | None:
        if self.prune_rate == 0 or self._due(step):
            return None
        return hypersparse_loss(self._weights(step), self.prune_rate)

    @torch.no_grad()
    def update(self, step: Step) -> None:
        if self.prune_rate == 0 or not (self.pruned or self._due(step)):
            return
        weights = self._weights(step)
        kept = self.get_buffer("kept")
        if not self.pruned:
            kept.copy_(torch.cat([k.flatten() for k in global_magnitude_mask(weights, self.prune_rate)]))
            self.pruned = True
        masks = [k.view_as(w) for k, w in zip(torch.split(kept, [w.numel() for w in weights]), weights, strict=True)]
        torch._foreach_mul_(weights, masks)

    def get_extra_state(self) -> dict[str, bool]:
        """Whether the mask is fixed; the mask itself is a buffer."""
        return {"pruned": getattr(self, "pruned", False)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.pruned = state["pruned"]

    def _weights(self, step: Step) -> list[Tensor]:
        return [step.model.get_parameter(n) for n in self.edits]

    def _due(self, step: Step) -> bool:
        if step.progress is None:
            raise ValueError(
                "HyperSparse prunes at a share of training and needs to know how far it is: pass steps=<number of "
                "updates> to attach, or progress= to step"
            )
        return step.progress >= self.prune_at
