"""Progressive sharpening and the edge of stability: what second-order regression models say, and your net."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import implements
from ..parts.curvature import Vector, gaussian, hvp, inner, lanczos, twice_differentiable

__all__ = ["EdgeOfStability", "QuadraticRegression", "edge_of_stability"]


# ---- the model that can be followed by hand
class SharpeningRun(NamedTuple):
    """What gradient descent did: one entry before each step, and one at the end.

    Attributes:
        loss: half the squared length of the residual.
        eigenvalue: the largest of J J'.
    """

    loss: Tensor
    eigenvalue: Tensor


@dataclass(frozen=True)
class QuadraticRegression:
    """Gradient descent on outputs that are quadratic in the weights, in closed form: residual and Jacobian suffice.

    Attributes:
        residual: outputs minus targets, (D,).
        jacobian: of the outputs in the weights, (D, P).
        curvature: second derivatives, constant and symmetric in the weights, (D, P, P).
    """

    residual: Tensor
    jacobian: Tensor
    curvature: Tensor

    @classmethod
    def of(cls, outputs: Callable[[Tensor], Tensor], weights: Tensor, targets: Tensor) -> QuadraticRegression:
        """The expansion of a model to second order: what it would do if nothing of higher order mattered.

        Args:
            outputs: of a vector of weights (P,), gives (D,); computed by what ``torch.func`` can differentiate twice.
            weights: where to expand, (P,).
            targets: (D,).
        """
        jacobian = torch.func.jacrev(outputs)
        return cls(
            (outputs(weights) - targets).detach(),
            jacobian(weights).detach(),
            torch.func.jacrev(jacobian)(weights).detach(),
        )

    @classmethod
    def random(
        cls, outputs: int, weights: int, scale: float, generator: torch.Generator | None = None
    ) -> QuadraticRegression:
        """Gaussian, float64: curvatures of variance 1; at first the eigenvalue is 1, the residual's norm ``scale``."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        curvature, jacobian, residual = normal(outputs, weights, weights), normal(outputs, weights), normal(outputs)
        curvature = curvature + curvature.mT
        return cls(
            scale * residual / residual.norm(), jacobian / torch.linalg.matrix_norm(jacobian, 2),
            curvature / curvature.std(),
        )  # fmt: skip

    def run(self, lr: float, steps: int, enough: float = 0.0) -> SharpeningRun:
        """Gradient descent on half the squared residual.

        Args:
            lr: learning rate, above 0.
            steps: at most.
            enough: norm of the residual at which to end before.

        Raises:
            ValueError: unless lr is above 0.
        """
        if not lr > 0:
            raise ValueError(f"lr must be above 0, got {lr:g}")
        z, j = self.residual, self.jacobian
        loss, eigenvalue = [], []
        for step in range(steps + 1):
            loss.append(z.square().sum() / 2)
            eigenvalue.append(torch.linalg.matrix_norm(j, 2).square() if j.isfinite().all() else z.new_tensor(math.nan))
            if step == steps or not loss[-1] > enough**2 / 2:  # nan ends it, too
                break
            gradient = j.T @ z
            bent = bend(self.curvature, gradient)
            z, j = z - lr * j @ gradient + lr**2 / 2 * bent @ gradient, j - lr * bent
        return SharpeningRun(torch.stack(loss), torch.stack(eigenvalue))


def bend(curvature: Tensor, direction: Tensor) -> Tensor:
    """How the Jacobian changes along a direction of the weights: (D, P, P), (P,) -> (D, P)."""
    return curvature @ direction


# ---- any model
@dataclass(frozen=True)
class EdgeOfStability:
    """Where a model is.

    Attributes:
        eigenvalue: the largest of J J'.
        position: lr times that, over 2: 1 at the edge.
        rate: change of ``eigenvalue`` per unit of time (lr times steps) along gradient flow; above 0 it sharpens.
        residual: how far from an eigenvalue ``eigenvalue`` may be at most.
        vector: the direction in weight space, by name; a warm start for the next call.
    """

    eigenvalue: Tensor
    position: Tensor
    rate: Tensor
    residual: Tensor
    vector: dict[str, Tensor]


@implements("quadratic-regression-edge-of-stability")
def edge_of_stability(
    outputs: Callable[[], Tensor],
    params: Vector,
    targets: Tensor,
    lr: float,
    iterations: int = 20,
    start: Vector | None = None,
) -> EdgeOfStability:
    r"""Edge of stability: how far your net is from it, and whether gradient descent drives it there.

    Computes:
        The largest eigenvalue of the tangent kernel J J', which for squared error is the curvature that decides
        stability near a fit, and the speed at which gradient flow changes it: second derivatives along the gradient and
        the top direction. ``QuadraticRegression`` follows a model of which nothing else than these derivatives is left.

    Formula:
        z_{t+1} = z_t - \eta J J^\top z + \frac{\eta^2}{2} Q(J^\top z, J^\top z)
        J_{t+1} = J_t - \eta \, Q(J^\top z, \cdot)
        \frac{d \lambda_{\max}}{d t} = -2 \, u^\top Q(J^\top z, J^\top u)

    Helps:
        Choosing a learning rate for full batches: models sharpen until the eigenvalue is at 2 / lr and then stay just
        below, so that what is measured at the start says little.

    Avoid:
        Small batches, which stay below the edge for other reasons, and losses other than squared error, whose curvature
        has another factor. Predicting how far below 2 / lr the plateau lies: in random quadratic models it depended on
        the start. Random quadratic models
        with residuals of norm 0.1 and more diverge or stay above the edge.

    Defaults:
        20 Lanczos steps.

    Cost:
        One forward pass, four backward passes and two more for each Lanczos step.

    Reference:
        Agarwala, Pedregosa, Pennington 2022, Second-order regression models exhibit progressive sharpening to the edge
        of stability, arXiv 2210.04860. The rate of a model with any output is the derivative of an eigenvalue.

    Args:
        outputs: computes the outputs of all training samples, any shape, from ``params``, without randomness.
        params: that require gradients, by name, tied ones once.
        targets: of the shape of the outputs.
        lr: of gradient descent on half the summed squared error; for ``nn.MSELoss`` over n numbers times 2 / n.
        iterations: Lanczos steps.
        start: direction to start from, ``vector`` of an earlier call, say; None: random, always the same.

    Raises:
        ValueError: if the shapes of outputs and targets differ.
    """
    names = list(params)
    with twice_differentiable(), torch.enable_grad():
        f = outputs()
        if f.shape != targets.shape:
            raise ValueError(f"outputs {tuple(f.shape)} and targets {tuple(targets.shape)} must have one shape")
        free = torch.zeros_like(f, requires_grad=True)

        def pulled(u: Tensor, graph: bool = False) -> dict[str, Tensor]:
            """J' u."""
            found = torch.autograd.grad(
                f, list(params.values()), u, retain_graph=True, create_graph=graph, materialize_grads=True
            )
            return dict(zip(names, found, strict=True))

        back = pulled(free, graph=True)  # linear in ``free``: its derivative there along v is J v

        def pushed(v: Vector) -> Tensor:
            """J v."""
            used = [n for n in names if back[n].requires_grad]
            (found,) = torch.autograd.grad([back[n] for n in used], free, [v[n] for n in used], retain_graph=True)
            return found

        first = gaussian(params, torch.Generator(f.device).manual_seed(0)) if start is None else start
        top = lanczos(lambda v: pulled(pushed(v)), first, iterations)
        eigenvalue, vector = top.values[-1], top.vector()
        u = pushed(vector).detach()
        u = u / torch.linalg.vector_norm(u).clamp_min(torch.finfo(u.dtype).tiny)
        along = {n: a.detach() for n, a in pulled((f - targets).detach()).items()}
        rate = -2 * inner(hvp(pulled(u, graph=True), params, along), pulled(u))
    return EdgeOfStability(eigenvalue, lr * eigenvalue / 2, rate, top.residuals[-1], vector)
