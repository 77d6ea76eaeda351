"""Sinkhorn: entropic optimal transport for any cost, weights, batch and dtype, which says whether it converged.

Sweeps act on a kernel whose potentials have been absorbed, so no epsilon is too small for them; the factor of
over-relaxation comes from the rate that is seen; small epsilons are approached from larger ones; and where that rate
promises too many sweeps, Newton's method on the semi-dual takes over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import NotConverged
from .entropic import Entropic, entropic, newton
from .envelope import transport_value

__all__ = ["Coupling", "sinkhorn"]

BLOCK = 5  # sweeps between looks at the error
RANGE = 50.0  # logarithm of a scaling at which it is absorbed
START, STAGE = 64.0, 4.0  # range of costs over the first epsilon, and the ratio of successive ones, on the way down
NEAR = 0.1  # marginal error below which over-relaxation is safe


@dataclass(frozen=True)
class Coupling:
    """An entropic coupling.

    Attributes:
        value: <P, C> + epsilon KL(P | a b^T), (...). Differentiable once in cost, a and b by the envelope theorem: the
            gradients are P, f and g, at no further cost.
        plan: P (..., n, m), a constant.
        f, g: potentials (..., n) and (..., m), constants in float64 (rounded, they would no longer meet the marginals).
        error: L1 distance of both marginals from the weights, added, (...).
        converged: whether that is within the tolerance, (...).
        sweeps, newton_steps: how much work it was.
    """

    value: Tensor
    plan: Tensor
    f: Tensor
    g: Tensor
    error: Tensor
    converged: Tensor
    sweeps: int
    newton_steps: int


def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    epsilon: float | Tensor,
    tol: float = 1e-6,
    sweeps: int = 10_000,
    newton_steps: int = 200,
    check: bool = True,
) -> Coupling:
    """Entropic optimal transport: the coupling of least cost plus epsilon times its mutual information.

    Args:
        cost: (..., n, m), finite, of any floating dtype; the arithmetic is float64 where the device has it.
        a, b: weights (..., n) and (..., m), at least 0, sums 1; None: equal weights.
        epsilon: above 0, in the units of the cost; a number, or one for each problem (...).
        tol: on the sum of both marginals' L1 errors.
        sweeps: at most so many.
        newton_steps: at most so many, each an n^2 m product and a Cholesky factor (n the smaller side); 0: none.
        check: raise where the tolerance is not met; with False the result says so in ``converged``.

    Raises:
        NotConverged: see ``check``.
        ValueError: for what is no transport problem.
    """
    if not tol > 0 or sweeps < 1 or newton_steps < 0:
        raise ValueError(
            f"tol must be above 0, sweeps at least 1 and newton_steps at least 0, got {tol:g}, {sweeps}, {newton_steps}"
        )
    with torch.no_grad():
        problem = entropic(cost, a, b, epsilon)
        f, g, plan, swept, steps = _solve(problem, tol, sweeps, newton_steps)
    return coupled(problem, (f, g, plan), (cost, a, b), tol, swept, steps, check)


def coupled(
    problem: Entropic,
    found: tuple[Tensor, Tensor, Tensor],
    given: tuple[Tensor, Tensor | None, Tensor | None],
    tol: float,
    sweeps: int,
    steps: int,
    check: bool,
) -> Coupling:
    """What a solver found (f, g, plan) for the given (cost, a, b), with its error and a value that has gradients."""
    cost, a, b = given
    f, g, plan = found
    error = problem.error(plan)
    converged = error <= tol
    if check and not bool(converged.all()):
        raise NotConverged(
            f"marginal error {float(error.amax()):.1e} after {sweeps} sweeps and {steps} Newton steps, not {tol:g}: "
            "allow more of them, or a larger tol or epsilon; check=False returns the coupling as it is"
        )
    weights = (problem.a if a is None else a, problem.b if b is None else b)
    dual = (f * problem.a).sum(-1) + (g * problem.b).sum(-1)
    value = transport_value(dual, cost, *weights, plan, f, g)
    return Coupling(value, plan.to(cost.dtype), f, g, error, converged, sweeps, steps)


def _solve(problem: Entropic, tol: float, budget: int, steps: int) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Potentials, their plan, and how many sweeps and Newton steps it took, on the way down included."""
    f = torch.zeros_like(problem.a)
    spread = problem.spread.unsqueeze(-1)
    ratio = float((spread / problem.epsilon).amax()) / START
    swept = stepped = 0
    for stage in range(math.ceil(math.log(max(ratio, 1.0), STAGE))):
        easier = problem.at(torch.maximum(problem.epsilon, spread / (START * STAGE**stage)))
        f, _, _, more, further = _run(easier, f, max(tol, NEAR), (budget - swept) // 2, steps - stepped)
        swept, stepped = swept + more, stepped + further
    f, g, plan, more, further = _run(problem, f, tol, budget - swept, steps - stepped)
    return f, g, plan(), swept + more, stepped + further


Run = tuple[Tensor, Tensor, Callable[[], Tensor], int, int]
"""Potentials, their plan when asked for, sweeps and Newton steps."""


def _run(problem: Entropic, f: Tensor, tol: float, budget: int, steps: int) -> Run:
    """Sweeps at one epsilon, and Newton steps once those are seen to be slow."""
    kernel = Kernel(problem, f)
    patience = max(50.0, min(problem.cost.shape[-2:]) / 2)  # in sweeps: what some 8 Newton steps cost
    omega, before, swept = 1.0, math.inf, 0
    while swept < budget:
        count = min(BLOCK, budget - swept)
        error = kernel.sweep(count, omega)
        swept += count
        if error <= tol / 2:  # a plan built anew from the potentials rounds a little
            break
        if before < math.inf:
            rate = (error / before) ** (1 / count)
            if steps > 0 and _left(error, tol, rate, omega) > patience:
                return _newton(problem, *kernel.potentials(), tol, steps, swept)
            omega = _relaxation(omega, rate, error)
        before = error
    return *kernel.potentials(), kernel.plan, swept, 0


def _newton(problem: Entropic, f: Tensor, g: Tensor, tol: float, steps: int, swept: int) -> Run:
    """Newton with the smaller Hessian."""
    if problem.cost.shape[-2] <= problem.cost.shape[-1]:
        found = newton(problem, f, tol, steps)
        return found.f, found.g, lambda: found.plan, swept, len(found.errors) - 1
    found = newton(problem.turned, g, tol, steps)
    return found.g, found.f, lambda: found.plan.mT, swept, len(found.errors) - 1


def _left(error: float, tol: float, rate: float, omega: float) -> float:
    """Sweeps until the tolerance, going by the rate seen; from plain sweeps, by what over-relaxation makes of it."""
    if rate >= 1:
        return math.inf
    if omega == 1:
        rate = 2 / (1 + math.sqrt(1 - rate)) - 1
    return math.log(error / tol) / -math.log(max(rate, 1e-9))


def _relaxation(omega: float, rate: float, error: float) -> float:
    """The best factor, given the rate seen with this one (Young's relation of successive over-relaxation)."""
    if rate >= 1 or error > NEAR:
        return 1.0
    if rate <= omega - 1:  # already beyond the best, where the factor alone sets the rate
        return omega
    plain = (rate + omega - 1) ** 2 / (rate * omega**2)  # contraction of a plain sweep
    return 2 / (1 + math.sqrt(max(1 - plain, 1e-6)))


class Kernel:
    """The plan of the hard potentials nearest to f, and scalings of its rows and columns that mend its marginals.

    One matrix is reused throughout: on a CPU a fresh one costs as much as several sweeps.
    """

    def __init__(self, problem: Entropic, f: Tensor) -> None:
        self.problem, self.matrix = problem, torch.empty_like(problem.cost)
        self._absorb(*problem.hard(f, self.matrix))

    def _absorb(self, f: Tensor, g: Tensor) -> None:
        self.f, self.g = f, g
        self.problem.plan(f, g, out=self.matrix)
        self.u, self.v = torch.ones_like(f), torch.ones_like(g)

    def plan(self) -> Tensor:
        """The scaled plan; takes the matrix, so that nothing can be swept after it."""
        return self.matrix.mul_(self.u.unsqueeze(-1)).mul_(self.v.unsqueeze(-2))

    def potentials(self) -> tuple[Tensor, Tensor]:
        """Those of the scaled plan."""
        return self.f + self.problem.epsilon * self.u.log(), self.g + self.problem.epsilon * self.v.log()

    def sweep(self, count: int, omega: float) -> float:
        """Sweeps, the last half of one plain, so that the columns are right. Returns the rows' largest L1 error."""
        p = self.problem
        for start in range(0, count, BLOCK):
            for _ in range(min(BLOCK, count - start)):
                self.u = _fitted(self.u, self.matrix, self.v, p.a, omega)
                self.v = _fitted(self.v, self.matrix.mT, self.u, p.b, omega)
            far = torch.maximum(self.u.log().abs().amax(), self.v.log().abs().amax())
            if not float(far) < RANGE:
                self._absorb(*self.potentials())
        if omega != 1:
            self.v = _fitted(self.v, self.matrix.mT, self.u, p.b, 1.0)
        rows = self.u * (self.matrix @ self.v.unsqueeze(-1)).squeeze(-1)
        return float((rows - p.a).abs().sum(-1).amax())


def _fitted(old: Tensor, kernel: Tensor, other: Tensor, weights: Tensor, omega: float) -> Tensor:
    """The scaling that meets these weights, moved omega times as far; 1 where there is no weight."""
    fit = weights / (kernel @ other.unsqueeze(-1)).squeeze(-1).clamp_min(torch.finfo(old.dtype).tiny)
    return torch.where(weights > 0, fit if omega == 1 else old * (fit / old) ** omega, 1.0)
