"""Plug and play: linear inverse problems solved with a denoiser as the prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core.citing import implements
from ..core.errors import NotConverged
from ..core.modes import evaluating
from ..parts.conjugate_gradients import conjugate_gradients, lengths, spread
from .learned_proximal import LearnedProximal

__all__ = ["Restored", "plug_and_play"]

Solver = Literal["pgd", "admm"]
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Restored:
    """A solution of an inverse problem.

    Attributes:
        x: the restored signals (B, ...).
        converged: whether each was within the tolerance at the end, (B,).
        changes: of every iteration, each sample's relative change, (iterations, B); of ADMM the larger of that and the
            relative distance of its two copies.
        objective: of every iteration, weight ||A x - y||^2 / 2 + phi(x), (iterations, B); None unless the denoiser is a
            ``LearnedProximal``, which knows its phi.
        weight: of the data, as used.
    """

    x: Tensor
    converged: Tensor
    changes: Tensor
    objective: Tensor | None
    weight: float


@implements("learned-proximal-network")
@torch.no_grad()
def plug_and_play(
    y: Tensor,
    forward: Map,
    adjoint: Map,
    denoiser: Map,
    *,
    solver: Solver = "pgd",
    weight: float | None = None,
    start: Tensor | None = None,
    tol: float = 1e-4,
    iterations: int = 500,
    check: bool = True,
) -> Restored:
    r"""Plug and play: minimise misfit plus prior, with a denoiser as the proximal operator of the prior.

    Computes:
        x with weight/2 ||A x - y||^2 + phi(x) stationary, by proximal gradient descent or ADMM, until x changes no
        more; for ``LearnedProximal`` also that objective after each iteration.

    Formula:
        x \leftarrow f(x - \eta A^{\top} (A x - y)) \quad (\text{pgd})
        x \leftarrow (\eta A^{\top} A + I)^{-1} (\eta A^{\top} y + z - u) \quad (\text{admm})
        z \leftarrow f(x + u), \quad u \leftarrow u + x - z

    Helps:
        One denoiser for all linear measurements: blur, missing pixels, compressed sensing, tomography.

    Avoid:
        Denoisers that are no proximal operators, if convergence matters: nothing guarantees it. Noise levels that
        differ from those the denoiser was trained on, without tuning ``weight``. Large weights with a prior far from
        convex: on sparse signals ADMM settled everywhere at weight 1/2, but not for a tenth of them at 1 and for a
        quarter at 3.

    Defaults:
        Descent with weight 0.9 / ||A||^2, the norm from 50 power iterations; larger weights need ADMM, which takes any.

    Cost:
        An iteration: A, its adjoint and the denoiser once; for ADMM A and its adjoint up to 100 times.

    Reference:
        Fang, Buchanan, Sulam 2023, What's in a Prior? Learned Proximal Networks for Inverse Problems,
        arXiv 2310.14344, for learned proximal networks. A descent step is one of proximal gradient for weight times
        the misfit plus phi, hence weight < 1 / ||A||^2 even where phi is not convex. ADMM is written with the data's
        weight in place of the penalty parameter rho = 1 / weight.

    Args:
        y: measurements (B, ...).
        forward: A: signals (B, ...) to measurements, linear, each sample by itself.
        adjoint: its transpose: measurements to signals.
        denoiser: f, signals to signals; a module is put in evaluation mode meanwhile.
        solver: ``"pgd"`` or ``"admm"``.
        weight: eta, of the data against the prior; above 0, and for ``"pgd"`` at most 1 / ||A||^2.
        start: first guess; default the adjoint of y.
        tol: on each sample's change, relative to max(1, ||x||).
        iterations: at most so many.
        check: raise where the tolerance is not met; with False the result says so in ``converged``.

    Returns:
        a ``Restored``, without a graph.

    Raises:
        NotConverged: see ``check``.
        TypeError: for integers or complex numbers.
        ValueError: for an unknown solver, a number out of range, maps that are not each other's transpose, or a
            denoiser that changes the shape.
    """
    if solver not in get_args(Solver):
        raise ValueError(f"plug_and_play: solver must be pgd or admm, got {solver!r}")
    if not (weight is None or weight > 0) or not tol > 0 or iterations < 1:
        raise ValueError(
            f"plug_and_play: weight and tol must be above 0 and iterations at least 1, got {weight}, {tol:g} and "
            f"{iterations}"
        )
    if y.ndim < 2:
        raise ValueError(f"plug_and_play: measurements are (B, ...), a row for each sample; got {tuple(y.shape)}")
    with (
        torch.autocast(y.device.type, enabled=False),  # half precision would keep the last digits from settling
        evaluating(denoiser) if isinstance(denoiser, nn.Module) else nullcontext(),
    ):
        back = adjoint(y)
        if not (y.is_floating_point() and back.is_floating_point()):
            raise TypeError(
                f"plug_and_play: measurements and signals are real, these are {y.dtype} and {back.dtype}; give complex "
                "ones as their two parts (torch.view_as_real)"
            )
        x = back if start is None else start
        largest = _norm(forward, adjoint, back, y)
        if weight is None:
            weight = 0.9 / largest
        elif solver == "pgd" and weight * largest > 1.001:
            raise ValueError(
                f"plug_and_play: descent needs a weight of at most 1 / ||A||^2 = {1 / largest:.3g}, got {weight:g}; "
                "solver='admm' takes any"
            )

        def normal(v: Tensor) -> Tensor:
            return weight * adjoint(forward(v))

        u, changes, objective = torch.zeros_like(x), [], []
        for _ in range(iterations):
            before, pull = x, weight * back - normal(x)
            if solver == "pgd":
                into = x + pull
                x = _denoised(denoiser, into)
                moved = lengths(x - before)
            else:
                fitted = x + conjugate_gradients(normal, pull - u, damping=1.0, tol=1e-3).value
                into = fitted + u
                x = _denoised(denoiser, into)
                u = into - x
                moved = torch.maximum(lengths(x - before), lengths(x - fitted))
            changes.append(moved / lengths(x).clamp_min(1))
            if isinstance(denoiser, LearnedProximal):
                objective.append(weight / 2 * lengths(forward(x) - y).square() + denoiser.prior_at(into, x))
            converged = changes[-1] <= tol
            if bool(converged.all()):
                break
    if check and not bool(converged.all()):
        raise NotConverged(
            f"{int((~converged).sum())} of {len(x)} samples still changed by up to {float(changes[-1].max()):.1e} "
            f"after {iterations} iterations, not {tol:g}: allow more, or a larger tol; check=False returns them as "
            "they are"
        )
    return Restored(x, converged, torch.stack(changes), torch.stack(objective) if objective else None, weight)


def _denoised(denoiser: Map, into: Tensor) -> Tensor:
    found = denoiser(into.clone())  # which it may overwrite
    if found.shape != into.shape:
        raise ValueError(f"plug_and_play: denoiser makes {tuple(found.shape)} of signals {tuple(into.shape)}")
    return found


def _norm(forward: Map, adjoint: Map, signal: Tensor, y: Tensor) -> float:
    """||A||^2 by power iteration, from a fixed start; and a look whether the two maps fit."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(signal.shape, generator=g, dtype=torch.float64).to(signal)[:1].expand_as(signal)
    if (image := forward(v)).shape != y.shape:
        raise ValueError(
            f"plug_and_play: forward makes {tuple(image.shape)} of the signals {tuple(signal.shape)} that adjoint "
            f"gives, but the measurements are {tuple(y.shape)}"
        )
    # of many numbers <A v, y> says little, v and y being almost at right angles; A v itself is not
    for measured, signals in ((y, signal), (image, adjoint(image))):
        one, other = float((image * measured).sum()), float((v * signals).sum())
        if abs(one - other) > 1e-3 * float(image.norm() * measured.norm() + v.norm() * signals.norm()):
            raise ValueError(
                f"plug_and_play: adjoint is not the transpose of forward: <A v, r> = {one:.4g}, but <v, A' r> = "
                f"{other:.4g}"
            )
    for _ in range(50):
        v = v / spread(lengths(v).clamp_min(torch.finfo(v.dtype).tiny), v)
        v = adjoint(forward(v))
        value = lengths(v)
    if not 0 < float(value.max()) < math.inf:
        raise ValueError("plug_and_play: forward sends signals to 0, or to what is not finite")
    return float(value.max())
