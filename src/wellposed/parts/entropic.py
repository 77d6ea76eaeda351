"""Entropic optimal transport: one problem, its plan, and Newton's method on its semi-dual.

    min_P <P, C> + epsilon KL(P | a b^T)  subject to  P 1 = a, P^T 1 = b

has P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon). Given f, the g that meets the column marginals is a soft minimum;
what is left is the semi-dual F(f) = <f, a> + <g(f), b>, concave, with gradient a - P 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

HALVINGS = 30  # of a step, before a sweep is taken in its place
Thin = Callable[[Tensor, Tensor], Tensor]
"""A plan (..., n, m) and its marginal error (...) -> the entries that the Hessian's off-diagonal keeps, others 0."""


@dataclass(frozen=True)
class Entropic:
    """Checked data in the widest dtype of the device.

    Attributes:
        cost: (..., n, m).
        a, b: weights (..., n) and (..., m), each summing to 1; zeros are allowed.
        epsilon: (..., 1), above 0.
        spread: largest cost less the smallest, (...).
    """

    cost: Tensor
    a: Tensor
    b: Tensor
    epsilon: Tensor
    spread: Tensor

    @property
    def turned(self) -> Entropic:
        """Rows and columns exchanged."""
        return Entropic(self.cost.mT, self.b, self.a, self.epsilon, self.spread)

    def at(self, epsilon: Tensor) -> Entropic:
        """The same problem with more or less entropy."""
        return replace(self, epsilon=epsilon)

    @cached_property
    def scaled(self) -> Tensor:
        """The cost in units of epsilon."""
        return self.cost / self.epsilon.unsqueeze(-1)

    def plan(self, f: Tensor, g: Tensor, out: Tensor | None = None) -> Tensor:
        """The coupling of two potentials, into ``out``; its marginals are right only where the potentials are."""
        rows, columns = f + self.epsilon * self.a.log(), g + self.epsilon * self.b.log()
        exponent = torch.sub(rows.unsqueeze(-1), self.cost, out=out).add_(columns.unsqueeze(-2))
        return exponent.div_(self.epsilon.unsqueeze(-1)).exp_()

    def columns(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """The g that meets the column marginals given f, and the plan of both."""
        z = (f / self.epsilon + self.a.log()).unsqueeze(-1) - self.scaled
        top = z.amax(-2, keepdim=True)
        e = z.sub_(top).exp_()
        total = e.sum(-2, keepdim=True)
        g = -self.epsilon * (top + total.log()).squeeze(-2)
        return g, e.mul_(self.b.unsqueeze(-2) / total)

    def hard(self, f: Tensor, space: Tensor) -> tuple[Tensor, Tensor]:
        """Potentials of the limit epsilon -> 0 nearest to f: every row and column of their plan has an entry a_i b_j.

        A start from which the scaling vectors stay in range whatever epsilon is. What has no weight has no say.
        ``space``, of the cost's shape, is written over.
        """
        g = torch.sub(self.cost, f.where(self.a > 0, -torch.inf).unsqueeze(-1), out=space).amin(-2)
        return torch.sub(self.cost, g.where(self.b > 0, -torch.inf).unsqueeze(-2), out=space).amin(-1), g

    def error(self, plan: Tensor) -> Tensor:
        """Sum of both marginals' absolute errors, (...)."""
        return (plan.sum(-1) - self.a).abs().sum(-1) + (plan.sum(-2) - self.b).abs().sum(-1)


def entropic(cost: Tensor, a: Tensor | None, b: Tensor | None, epsilon: float | Tensor) -> Entropic:
    """A problem from what a user gives; see ``sinkhorn``.

    Raises:
        ValueError: for what is no transport problem.
    """
    if cost.ndim < 2 or not cost.is_floating_point() or 0 in cost.shape[-2:]:
        raise ValueError(f"the cost must be a floating-point matrix (..., n, m), got {cost.dtype} {tuple(cost.shape)}")
    wide = torch.float32 if cost.device.type == "mps" else torch.float64
    c = cost.detach().to(wide)
    eps = torch.as_tensor(epsilon, dtype=wide, device=c.device)
    if eps.shape not in ((), c.shape[:-2]):
        raise ValueError(
            f"epsilon must be a number, or one for each problem: {tuple(c.shape[:-2])}, got {tuple(eps.shape)}"
        )
    eps = eps.expand(c.shape[:-2]).unsqueeze(-1)
    spread = c.amax((-2, -1)) - c.amin((-2, -1))
    if not bool(spread.isfinite().all()):  # as every entry then is
        raise ValueError("the cost must be finite: give pairs that are forbidden a large cost")
    if not bool(((eps > 0) & eps.isfinite()).all()):
        raise ValueError(f"epsilon must be above 0, got {float(eps.amin()):g}")
    return Entropic(c, _weights(a, c, -2, "a"), _weights(b, c, -1, "b"), eps, spread)


def _weights(given: Tensor | None, cost: Tensor, side: int, name: str) -> Tensor:
    shape = (*cost.shape[:-2], cost.shape[side])
    if given is None:
        return cost.new_full(shape, 1 / shape[-1])
    w = given.detach().to(cost)
    if w.shape not in (shape, shape[-1:]):
        raise ValueError(f"the weights {name} must be {shape} or {shape[-1:]}, got {tuple(w.shape)}")
    total = w.sum(-1, keepdim=True)
    if not bool((w >= 0).all() & ((total - 1).abs() < 1e-2).all()):  # half precision sums this well
        raise ValueError(f"the weights {name} must be at least 0 and sum to 1; give unbalanced masses another solver")
    return (w / total).expand(shape)


@dataclass(frozen=True)
class Solved:
    """Where a solver stopped.

    Attributes:
        f, g: potentials.
        plan: of both.
        errors: the largest of the batch, at the start and after each step.
        evaluations: of the plan, those of the line searches included.
        kept: the largest share of the plan's entries that a Hessian used.
    """

    f: Tensor
    g: Tensor
    plan: Tensor
    errors: tuple[float, ...]
    evaluations: int
    kept: float


def newton(problem: Entropic, f: Tensor, tol: float, steps: int, thin: Thin | None = None) -> Solved:
    """Damped Newton on the semi-dual, until the marginal error is ``tol`` or the steps are used up.

    Args:
        problem: what is solved. Its Hessian is n x n for n rows, so turn the problem if n > m.
        f: where to start.
        tol: on the L1 error of both marginals.
        steps: at most so many.
        thin: leaves out entries of the Hessian; None: all are used.
    """
    g, plan = problem.columns(f)
    errors, evaluations, kept = [float(problem.error(plan).amax())], 1, 0.0
    while len(errors) <= steps and not errors[-1] <= tol:
        rows = plan.sum(-1)
        error = problem.error(plan)
        used = plan if thin is None else thin(plan, error)
        kept = max(kept, float(used.count_nonzero()) / used.numel())
        direction = problem.epsilon * newton_direction(used, rows, problem.a - rows, problem.b)
        slope = (direction * (problem.a - rows)).sum(-1)
        value = (f * problem.a).sum(-1) + (g * problem.b).sum(-1)
        slack = 64 * torch.finfo(f.dtype).eps * (f.abs().amax(-1) + g.abs().amax(-1))  # what rounding does to the value
        # no potential is further from another than the costs are: more would be lost in a plan that falls apart
        length = (problem.spread / direction.abs().amax(-1).clamp_min(torch.finfo(f.dtype).tiny)).clamp_max(1)
        for _ in range(HALVINGS):
            new = f + length.unsqueeze(-1) * direction
            new_g, new_plan = problem.columns(new)
            evaluations += 1
            new_value = (new * problem.a).sum(-1) + (new_g * problem.b).sum(-1)
            fine = (new_value >= value + 1e-4 * length * slope - slack) & new_value.isfinite()
            if bool(fine.all()):
                break
            length = torch.where(fine, length, length / 2)
        else:  # a sweep for those without a good step
            swept = problem.turned.columns(g)[0]
            new = torch.where(fine.unsqueeze(-1), new, swept)
            new_g, new_plan = problem.columns(new)
        f, g, plan = new, new_g, new_plan
        errors.append(float(problem.error(plan).amax()))
    return Solved(f, g, plan, tuple(errors), evaluations, kept)


def newton_direction(plan: Tensor, rows: Tensor, rhs: Tensor, b: Tensor) -> Tensor:
    """x with (diag(rows) - P diag(1/b) P^T) x = rhs, up to a constant; P may have lost entries.

    Scaled by the square roots of the rows the matrix has eigenvalues in [0, 1], its null vector is known, and what is
    added there makes it definite.
    """
    tiny = torch.finfo(rows.dtype).tiny
    root = rows.clamp_min(tiny).sqrt()
    scaled = plan / root.unsqueeze(-1) / b.clamp_min(tiny).sqrt().unsqueeze(-2)
    null = root / torch.linalg.vector_norm(root, dim=-1, keepdim=True)
    matrix = null.unsqueeze(-1) * null.unsqueeze(-2) - _gram(scaled)
    ridge = 4 * rows.shape[-1] * torch.finfo(rows.dtype).eps
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(1 + ridge)
    factor, info = torch.linalg.cholesky_ex(matrix)
    while bool((info > 0).any()) and ridge < 1:
        ridge *= 100
        diagonal.add_(ridge)
        factor, info = torch.linalg.cholesky_ex(matrix)
    return torch.cholesky_solve((rhs / root).unsqueeze(-1), factor).squeeze(-1) / root


def _gram(x: Tensor) -> Tensor:
    """X X^T; of a single matrix that is nearly empty by its entries, which saves the product of zeros."""
    if x.ndim == 2 and int(x.count_nonzero()) < 0.05 * x.numel():
        return torch.sparse.mm(x.to_sparse(), x.mT)
    return x @ x.mT
