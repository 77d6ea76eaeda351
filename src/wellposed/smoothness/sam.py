"""Sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..core import Method, Step, knob
from ..core.norms import global_norm

__all__ = ["SAM", "sam_perturbation"]


@torch.no_grad()
def sam_perturbation(
    grads: Mapping[str, Tensor], rho: float, weights: Mapping[str, Tensor] | None = None, eta: float = 0.01
) -> dict[str, Tensor]:
    """Where the first-order loss is worst in a ball of radius ``rho``.

    Args:
        grads: gradients by parameter name.
        rho: radius, in units of the weights' norm (adaptive: of T^-1 w).
        weights: given, the adaptive form of Kwon et al. 2021: T = |w| + eta, eps = rho T^2 g / ||T g||.
        eta: the adaptive form's floor.

    Returns:
        rho g / (||g|| + 1e-12), norm over all parameters; Foret et al. 2021 (arXiv 2010.01412), Eq. 2 with p = 2.
    """
    moved = {n: g.clone() for n, g in grads.items()}
    _ascend(moved, rho, weights, eta)
    return moved


@torch.no_grad()
def _ascend(grads: Mapping[str, Tensor], rho: float, weights: Mapping[str, Tensor] | None, eta: float) -> None:
    """Turn gradients into the perturbation, in their own memory."""
    g = list(grads.values())
    scale = None
    if weights is not None:
        scale = torch._foreach_abs([weights[n] for n in grads])
        torch._foreach_add_(scale, eta)
        torch._foreach_mul_(g, scale)
    norm = global_norm(g)
    if scale is not None:
        torch._foreach_mul_(g, scale)
    torch._foreach_mul_(g, rho / (norm + 1e-12))


class SAM(Method, paper="sam"):
    r"""Sharpness-aware minimisation: step along the gradient at the worst point of a small ball.

    Computes:
        eps = rho g / ||g|| with g the gradient of the whole objective, then the gradient at w + eps, applied at w.
        adaptive=True measures the ball relative to each weight's size (ASAM).

    Formula:
        \hat\epsilon = \rho \frac{g}{\lVert g \rVert}, \qquad g = \nabla L(w)
        g_{\mathrm{SAM}} = \nabla L(w + \hat\epsilon)
        \hat\epsilon_{\mathrm{ASAM}} = \rho \frac{T^2 g}{\lVert T g \rVert}, \qquad T = |w| + \eta

    Helps:
        Overfitting and wrong labels, at nearly any architecture; radius matters more than anything else.

    Avoid:
        When time per step is what limits you, and on clean small data, where it changes curvature but not accuracy.

    Defaults:
        rho 0.05, the paper's for ImageNet and CIFAR; its search covers 0.01 to 0.5. adaptive's eta 0.01 is ASAM's
        (whose rho is about ten times larger).

    Cost:
        Two passes; one extra copy of the weights (adaptive: two).

    Reference:
        Foret, Kleiner, Mobahi, Neyshabur 2021, Sharpness-Aware Minimization for Efficiently Improving Generalization,
        arXiv 2010.01412, Eq. 3 and Algorithm 1. Adaptive form: Kwon et al. 2021, arXiv 2102.11600.

    Args:
        rho: radius of the ball.
        adaptive: the scale-invariant ball.
        eta: floor of the adaptive scale.
    """

    null = {"rho": 0.0}
    stops = True

    rho: float = knob(0.05, low=0.0, grid=(0.05, 0.2, 0.5), log=True)
    adaptive: bool = False
    eta: float = knob(0.01, low=0.0)

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        compute()
        if self.rho == 0:
            return
        grads = step.grads()  # computed anew below, so their memory may hold the perturbation
        _ascend(grads, self.rho, step.params() if self.adaptive else None, self.eta)
        with step.moved(grads):
            del grads
            compute()

    def passes(self) -> float:
        return 2.0 if self.rho else 1.0
