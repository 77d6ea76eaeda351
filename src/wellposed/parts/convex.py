"""Input-convex networks: scalar functions of their input that are convex whatever the weights, and their gradient maps.

The gradient of a convex function is a proximal operator (of some prior), and an optimal transport map (Brenier).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .conjugate_gradients import conjugate_gradients, lengths, spread

__all__ = ["InputConvex", "Inverse", "inverse_gradient"]

THRESHOLD = 50.0  # of softplus: beyond, it is the identity to the last bit of double precision


class InputConvex(nn.Module):
    r"""A network psi(x), convex in x: each layer adds a free linear map of x to a non-negative one of the layer before.

    z_1 = g(H_1 x + b_1), z_k = g(W_k z_{k-1} + H_k x + b_k), psi = sum over units (and places) of w z_K + strong / 2
    ||x||^2, with W and w at least 0 and g the softplus log(1 + exp(sharpness a)) / sharpness: smooth, so that psi can
    be differentiated twice. Amos, Xu, Kolter 2017, Input Convex Neural Networks, arXiv 1609.07152.

    The weights that must not be negative are either squares (the default: nothing else to do), or clamped after every
    step of the optimizer: ``projected=True``, and ``projected_by(optimizer)`` or ``project()``; the latter was a little
    ahead on images.

    Args:
        inputs: numbers per sample, or channels of an image.
        widths: of the hidden layers, at least one.
        kernel: None: dense, on (B, inputs). An odd number: convolutions of that size with zero padding, on images
            (B, inputs, H, W) of any H and W.
        strong: makes psi strongly convex, so that the gradient map has an inverse everywhere; at least 0.
        sharpness: of the softplus, above 0; it becomes ReLU.
        projected: see above.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int] = (64, 64),
        *,
        kernel: int | None = None,
        strong: float = 0.0,
        sharpness: float = 10.0,
        projected: bool = False,
    ) -> None:
        super().__init__()
        if inputs < 1 or not widths or min(widths) < 1:
            raise ValueError(f"InputConvex: inputs and widths must be at least 1, got {inputs} and {list(widths)}")
        if kernel is not None and (kernel < 1 or kernel % 2 == 0):
            raise ValueError(f"InputConvex: the kernel must be odd and at least 1, got {kernel}")
        if not (strong >= 0 and sharpness > 0):
            raise ValueError(
                f"InputConvex: strong must be at least 0 and sharpness above 0, got {strong:g} and {sharpness:g}"
            )
        self.kernel, self.strong, self.sharpness, self.projected = kernel, strong, sharpness, projected
        places = () if kernel is None else (kernel, kernel)
        lifts = [
            nn.Linear(inputs, w) if kernel is None else nn.Conv2d(inputs, w, kernel, padding=kernel // 2)
            for w in widths
        ]
        self.lifts = nn.ModuleList(lifts)
        self.chain = nn.ParameterList(
            self._positive_start((after, before, *places), before * math.prod(places))
            for before, after in pairwise(widths)
        )
        self.head = self._positive_start((widths[-1],), math.sqrt(widths[-1]))

    def _positive_start(self, shape: tuple[int, ...], scale: float) -> nn.Parameter:
        """Log-normal weights of mean about 1 / scale: none is near 0, where nothing would be passed on."""
        weight = torch.randn(shape).mul(0.5).exp() / scale
        return nn.Parameter(weight if self.projected else weight.sqrt())

    def extra_repr(self) -> str:
        """What the layers do not show."""
        return f"strong={self.strong:g}, sharpness={self.sharpness:g}, projected={self.projected}"

    # ---- the function and its gradient
    def forward(self, x: Tensor) -> Tensor:
        """psi of each sample: (B, ...) to (B,)."""
        top = F.softplus(self._levels(x)[-1], self.sharpness, THRESHOLD)
        value = (top * self._shaped(self.head)).flatten(1).sum(1)
        return value + self.strong / 2 * x.flatten(1).square().sum(1) if self.strong else value

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient of psi at x, of x's shape, written out: it needs no graph, and can be differentiated."""
        levels = self._levels(x)
        slope = self._shaped(self.head) * torch.sigmoid(self.sharpness * levels[-1])
        found = self._back(slope, self.lifts[-1].weight)  # type: ignore[arg-type]
        for k in range(len(levels) - 2, -1, -1):
            slope = self._back(slope, self._positive(self.chain[k])) * torch.sigmoid(self.sharpness * levels[k])
            found = found + self._back(slope, self.lifts[k].weight)  # type: ignore[arg-type]
        return found + self.strong * x if self.strong else found

    def _levels(self, x: Tensor) -> list[Tensor]:
        """What the softplus is applied to, layer by layer."""
        levels = [self.lifts[0](x)]
        for lift, raw in zip(list(self.lifts)[1:], self.chain, strict=True):
            below, weight = F.softplus(levels[-1], self.sharpness, THRESHOLD), self._positive(raw)
            passed = F.linear(below, weight) if self.kernel is None else F.conv2d(below, weight, padding=self._padding)
            levels.append(passed + lift(x))
        return levels

    def _back(self, slope: Tensor, weight: Tensor) -> Tensor:
        """The adjoint of a layer."""
        if self.kernel is None:
            return slope @ weight
        return F.conv_transpose2d(slope, weight, padding=self._padding)

    @property
    def _padding(self) -> int:
        return (self.kernel or 1) // 2

    def _positive(self, weight: Tensor) -> Tensor:
        return weight if self.projected else weight.square()

    def _shaped(self, head: Tensor) -> Tensor:
        positive = self._positive(head)
        return positive if self.kernel is None else positive.view(-1, 1, 1)

    # ---- staying convex
    @torch.no_grad()
    def project(self) -> None:
        """Set to 0 what must not be negative and is; after each update, where ``projected``."""
        if self.projected:
            torch._foreach_clamp_min_([*self.chain, self.head], 0.0)

    def projected_by(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """``project`` after every step of the optimizer from now on; ``remove()`` on what is returned ends it."""
        return optimizer.register_step_post_hook(lambda *_: self.project())


# ---- the inverse of a gradient map
@dataclass(frozen=True)
class Inverse:
    """Points whose gradient is asked to be x.

    Attributes:
        point: y, of x's shape.
        residual: ||grad psi(y) - x|| / max(1, ||x||), (B,).
        converged: whether that is within the tolerance, (B,). It cannot be where no point has this gradient, which
            a psi without strong convexity leaves possible.
        iterations: Newton steps made.
    """

    point: Tensor
    residual: Tensor
    converged: Tensor
    iterations: int


def inverse_gradient(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    start: Tensor | None = None,
    tol: float = 1e-4,
    iterations: int = 200,
) -> Inverse:
    """Solve grad psi(y) = x for a convex psi, by Newton steps whose damping falls and rises with their success.

    Each step solves with the Hessian by conjugate gradients, from products alone, so that images are no harder than
    vectors; it is kept only for samples that came nearer.

    Args:
        gradient: (B, ...) to the same, each sample by itself; differentiable, with a symmetric Jacobian.
        x: (B, ...).
        start: first guess; default x.
        tol: on the residual.
        iterations: at most so many.

    Returns:
        the points without a graph; look at ``converged``. Autocast is left out: the residual would stay above ``tol``.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach().clone()  # a tensor of inference mode would have no graph
        y = x if start is None else start.detach().clone()
        size = lengths(x).clamp_min(1)
        damping = torch.full_like(size, 0.1)
        image, product = _linearised(gradient, y)
        error = x - image
        steps = 0
        while steps < iterations and bool((lengths(error) > tol * size).any()):
            steps += 1
            move = conjugate_gradients(product, error, damping=damping, tol=0.01).value
            trial = y + move
            image, product = _linearised(gradient, trial)
            left = x - image
            # psi(y) - <x, y> falls along the whole step if its slope at the end does not point back; plateaus are left
            downhill = (left * move).flatten(1).sum(1) >= 0
            better = (downhill | (lengths(left) < lengths(error))) & image.flatten(1).isfinite().all(1)
            damping = torch.where(better, damping / 4, damping * 4).clamp(1e-8, 1e8)
            if not bool(better.all()):  # those that did not gain stay where they were
                trial = torch.where(spread(better, y), trial, y)
                image, product = _linearised(gradient, trial)
            y, error = trial, x - image
        residual = lengths(error) / size
        return Inverse(y, residual, residual <= tol, steps)


def _linearised(gradient: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The gradient at y, and its Jacobian there as a function of vectors."""
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        image = gradient(at)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(image, at, v, retain_graph=True)[0]

    return image.detach(), product
