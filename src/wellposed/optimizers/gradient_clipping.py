"""Clipping the norm of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..core import Method, Step, knob
from ..core.norms import global_norm

__all__ = ["GradientClipping", "adaptive_max_norm", "clip_gradients"]


@torch.no_grad()
def clip_gradients(grads: Iterable[Tensor], max_norm: float | Tensor) -> Tensor:
    """Scale all gradients, in place, by min(1, max_norm / norm): direction kept, norm at most ``max_norm``.

    Args:
        grads: the gradients, together one vector.
        max_norm: threshold, in the gradient's units.

    Returns:
        the norm before, a scalar; Pascanu, Mikolov, Bengio 2013 (arXiv 1211.5063), Algorithm 1.
    """
    g = list(grads)
    norm = global_norm(g)
    if g:
        torch._foreach_mul_(g, (max_norm / norm).clamp(max=1.0))
    return norm


def adaptive_max_norm(norms: Tensor, percentile: float) -> Tensor:
    """A threshold for ``clip_gradients`` from the gradient norms seen so far: that share of them was shorter.

    Args:
        norms: past norms, shape (T,), T at least 1.
        percentile: in [0, 100].

    Returns:
        scalar.

    Raises:
        ValueError: if there is no norm, or ``percentile`` lies outside its range.
    """
    if not 0 <= percentile <= 100 or not len(norms):
        raise ValueError(
            f"adaptive_max_norm needs a percentile in 0 to 100 of at least one norm, got {percentile:g} of {len(norms)}"
        )
    return torch.quantile(norms, percentile / 100)


class GradientClipping(Method, paper="gradient-clipping-omega"):
    r"""Gradient clipping: a gradient longer than max_norm is shortened to it.

    Computes:
        g <- g min(1, max_norm / ||g||), the norm over all parameters and the whole objective, penalties included. List
        it first to clip the gradient the optimizer gets; listed after SAM it clips the gradients SAM asks for.

    Formula:
        g \leftarrow g \min \left( 1, \frac{c}{\lVert g \rVert} \right)

    Helps:
        Recurrent nets and any training whose gradient now and then explodes. Temporal order task over 30 steps, tanh
        net of 30 units, SGD: accuracy +44 points on five seeds, +46 on five fresh ones, one of which went against it.

    Avoid:
        Where every step is clipped: that is normalised gradient descent, and the learning rate means something else.
        Adam-like optimizers divide by the gradient's size anyway; there it only tames outliers.

    Defaults:
        max_norm 1: the authors' cutoff. The paper advises 0.5 to 10 times the usual norm; ``adaptive_max_norm`` gives a
        percentile of the norms seen.

    Cost:
        One pass; one reading and one scaling of the gradient, without waiting for the device.

    Reference:
        Pascanu, Mikolov, Bengio 2013, On the difficulty of training Recurrent Neural Networks, arXiv 1211.5063,
        Algorithm 1. Their code replaces a NaN gradient by a shrinking step; here the recipe raises NonFiniteError.

    Args:
        max_norm: longest gradient that is left alone; ``math.inf`` turns clipping off.
    """

    null = {"max_norm": math.inf}
    stops = True
    example = {"max_norm": 0.01}

    max_norm: float = knob(1.0, above=0.0, grid=(0.1, 1.0, 10.0), log=True)

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        compute()
        if self.max_norm < math.inf:
            clip_gradients(step.grads().values(), self.max_norm)
