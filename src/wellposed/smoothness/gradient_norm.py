"""Penalty on the norm of the loss gradient, by finite differences or exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core import Method, Step, knob

__all__ = ["GradientNormPenalty", "flooding", "gradient_norm_penalty"]


def gradient_norm_penalty(loss: Tensor, params: Iterable[Tensor]) -> Tensor:
    """||grad loss||^2 / 2 as a differentiable scalar; its gradient is H g.

    Args:
        loss: a scalar that was computed from ``params``.
        params: tensors to differentiate by; those that did not take part count as zero.

    Returns:
        scalar; Karakida et al. 2023 (arXiv 2210.02720), Eq. 1 without its factor gamma.
    """
    grads = torch.autograd.grad(loss, list(params), create_graph=True, allow_unused=True)
    return 0.5 * torch.stack([g.square().sum() for g in grads if g is not None]).sum()


def flooding(loss: Tensor, b: float) -> Tensor:
    """|loss - b| + b: descends above the level ``b`` and ascends below it.

    A descent and the ascent that follows it, both with learning rate eta, together step along the finite-difference
    gradient penalty with eps = eta. Ishida et al. 2020 (arXiv 2002.08709); Karakida et al. 2023, section 5.

    Args:
        loss: any shape; usually the mean loss of a minibatch.
        b: flood level, in units of the loss.
    """
    return (loss - b).abs() + b


class GradientNormPenalty(Method, paper="finite-difference-gradient-reg"):
    r"""Gradient regularization: penalise the squared norm of the loss gradient.

    Computes:
        The gradient of loss + gamma / 2 ||g||^2, which is g + gamma H g. mode="forward" takes H g from the gradient at
        w + eps g, "backward" from that at w - eps g (not normalised), "double" differentiates twice. The three agree
        on quadratics; elsewhere the forward form climbs, and prefers wider minima than the exact penalty.

    Formula:
        \nabla \left( L + \frac{\gamma}{2} \lVert \nabla L \rVert^2 \right) = g + \gamma H g, \qquad g = \nabla L(w)
        H g \approx \frac{\nabla L(w + \varepsilon g) - g}{\varepsilon}

    Helps:
        Wrong labels: about +4 points on 300 digits with 20 % of them wrong (128-128 net, gamma 0.2, eps 0.1), with the
        curvature lower in the order forward, double, backward.

    Avoid:
        Expecting sparse solutions: on diagonal linear nets the effect was in the wrong direction. "double" needs a
        model whose backward can be differentiated (not a compiled one, not a recurrent net under cuDNN), and gained no
        accuracy over "forward".

    Defaults:
        gamma 0.1 and eps 0.1, inside the range the paper searches (gamma 0.01 to 1, eps 0.05 to 0.2), forward.

    Cost:
        Two passes; two copies of the weights. "double": about 2.6 passes' time in one batch on one rank, else one pass
        more, because the whole gradient must be known first.

    Reference:
        Karakida, Takase, Hayase, Osawa 2023, Understanding Gradient Regularization in Deep Learning: Efficient
        Finite-Difference Computation and Implicit Bias, arXiv 2210.02720. With gamma = eps = rho / ||g|| the forward
        form is SAM.

    Args:
        gamma: strength of the penalty.
        eps: length of the finite-difference step per unit of gradient.
        mode: "forward", "backward" or "double".
    """

    null = {"gamma": 0.0}
    stops = True

    gamma: float = knob(0.1, low=0.0, grid=(0.05, 0.1, 0.5), log=True)
    eps: float = knob(0.1, above=0.0)
    mode: Literal["forward", "backward", "double"] = "forward"

    def check(self) -> None:
        if self.mode not in ("forward", "backward", "double"):
            raise ValueError(f"GradientNormPenalty: mode must be 'forward', 'backward' or 'double', got {self.mode!r}")

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        if self.gamma == 0:
            compute()
        elif self.mode == "double":
            with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
                self._double(compute, step)
        else:
            self._difference(compute, step)

    def _difference(self, compute: Callable[[], None], step: Step) -> None:
        compute()
        here = {n: g.clone() for n, g in step.grads().items()}
        ahead = self.eps if self.mode == "forward" else -self.eps
        with step.moved(dict(zip(here, torch._foreach_mul(list(here.values()), ahead), strict=True))):
            compute()
        there = {n: g for n, g in step.grads().items() if n in here}
        # g + gamma / ahead * (there - g), written into the memory of `there`
        torch._foreach_lerp_(list(there.values()), [here[n] for n in there], 1 - self.gamma / ahead)

    def _double(self, compute: Callable[[], None], step: Step) -> None:
        params = step.params()

        def penalised(objective: Tensor) -> Tensor:
            if not step.alone:  # a part of the objective: the square of a sum is no sum of squares
                return objective
            return objective + self.gamma * gradient_norm_penalty(objective, params.values())

        with step.editing(penalised):
            compute()
        if step.alone:
            return
        whole = {n: g.clone() for n, g in step.grads().items()}

        def projected(objective: Tensor) -> Tensor:  # the gradient of <grad objective, g> sums to H g over the parts
            parts = torch.autograd.grad(objective, [params[n] for n in whole], create_graph=True, allow_unused=True)
            pairs = zip(parts, whole.values(), strict=True)
            return objective + self.gamma * torch.stack([(p * g).sum() for p, g in pairs if p is not None]).sum()

        with step.editing(projected):
            compute()

    def passes(self) -> float:
        if self.gamma == 0:
            return 1.0
        return 2.6 if self.mode == "double" else 2.0
