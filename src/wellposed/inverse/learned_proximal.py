"""Learned proximal networks: denoisers that are the proximal operator of a prior which can be read off."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.citing import implements
from ..core.errors import NotConverged
from ..parts.convex import InputConvex, Inverse, inverse_gradient

__all__ = ["LearnedProximal"]


@implements("learned-proximal-network")
class LearnedProximal(nn.Module):
    r"""Learned proximal network: a denoiser that is exactly the proximal operator of a learned prior.

    Computes:
        The gradient f of an input-convex network psi, which is the proximal operator of a prior phi, convex or not;
        and phi itself, by inverting f.

    Formula:
        f(y) = \nabla \psi(y) = \arg\min_x \tfrac{1}{2} \lVert x - y \rVert^2 + \phi(x)
        \phi(x) = \langle y, x \rangle - \tfrac{1}{2} \lVert x \rVert^2 - \psi(y), \qquad y = f^{-1}(x)

    Helps:
        Inverse problems: ``plug_and_play`` with it descends a known objective. Asking what prior was learned.

    Avoid:
        Reading phi outside the range of f: without ``strong`` the range is bounded, and x beyond it has no preimage
        (``invert`` says so, ``prior`` raises). Where only the denoised image counts: on photo patches a free net of the
        same size was 2 to 3 decibels better. Signals unlike those trained on: f only extrapolates there, and plug and
        play may converge there; on photos with half of the pixels missing it did so after 400 training steps for some
        settings, less from a start with plausible values, and not after 1500. Training by squared error, if the prior
        is to be that of the data: see ``ProximalMatching``.

    Defaults:
        Those of ``InputConvex``: positive weights are squares, sharpness 10. The authors clamp weights after each
        update (``projected=True``: on numbers no different, on images a decibel ahead in a short training), and use
        sharpness 100 and alpha 1e-6 for images in [0, 1], with 40000 steps.

    Cost:
        A pass through psi and one back; inverting f takes Newton steps with up to 100 products each.

    Reference:
        Fang, Buchanan, Sulam 2023, What's in a Prior? Learned Proximal Networks for Inverse Problems,
        arXiv 2310.14344, section 3. The authors' strong convexity is alpha ||y||^2; ``InputConvex`` halves it.

    Args:
        convex: psi, dense or convolutional; the constant of phi is that of psi.

    Example:
        >>> import torch
        >>> from wellposed.parts.convex import InputConvex
        >>> prox = LearnedProximal(InputConvex(1, widths=(8, 8), kernel=3, strong=0.1))
        >>> image = prox(torch.randn(4, 1, 6, 6))
        >>> prox.prior(image).shape
        torch.Size([4])
    """

    def __init__(self, convex: InputConvex) -> None:
        super().__init__()
        self.convex = convex

    def forward(self, y: Tensor) -> Tensor:
        """f(y), of y's shape."""
        return self.convex.gradient(y)

    def potential(self, y: Tensor) -> Tensor:
        """psi(y) of each sample, (B,)."""
        return self.convex(y)

    def invert(self, x: Tensor, *, tol: float = 1e-4, iterations: int = 200) -> Inverse:
        """The y with f(y) = x, how near f(y) is, and whether that is within ``tol`` (relative to max(1, ||x||))."""
        return inverse_gradient(self, self._wide(x), tol=tol, iterations=iterations)

    def prior(self, x: Tensor, *, tol: float = 1e-4, iterations: int = 200) -> Tensor:
        """phi(x) of each sample, up to a constant, (B,); without a graph (its gradient is y - x).

        Raises:
            NotConverged: where no y with f(y) = x was found.
        """
        found = self.invert(x, tol=tol, iterations=iterations)
        if not bool(found.converged.all()):
            raise NotConverged(
                f"{int((~found.converged).sum())} of {len(x)} samples have no y with f(y) = x to within {tol:g} (worst "
                f"{float(found.residual.max()):.1e}): they may lie outside the range of f, which strong > 0 makes all "
                "of space; invert() returns what was found"
            )
        return self.prior_at(found.point, x)

    @torch.no_grad()
    def prior_at(self, y: Tensor, x: Tensor) -> Tensor:
        """phi(x) of each sample where y with f(y) = x is known."""
        x, y = self._wide(x), self._wide(y)
        with torch.autocast(x.device.type, enabled=False):
            return (x * (y - x / 2)).flatten(1).sum(1) - self.convex(y)

    def _wide(self, x: Tensor) -> Tensor:
        """In the weights' precision: what autocast gave may have less."""
        return x.to(self.convex.head.dtype)
