"""Sparsity-constrained optimal transport: at most k sources for each target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import implements
from ..core.errors import NotConverged
from ..parts.entropic import entropic, newton_direction
from ..parts.envelope import transport_value

__all__ = ["SparseCoupling", "sparse_ot", "sparse_shares"]


@dataclass(frozen=True)
class SparseCoupling:
    """A coupling with few entries.

    Attributes:
        value: of the semi-dual (...): with ``k=None`` the least <P, C> + gamma/2 ||P||^2. Differentiable once in cost,
            a and b by the envelope theorem.
        plan: P (..., n, m), a constant; its columns sum to b and have at most k entries that are not 0.
        f, g: potentials (..., n) and (..., m), constants.
        error: L1 distance of the rows' sums from a, (...).
        converged: whether that is within the tolerance, (...).
        evaluations: of the semi-dual.
    """

    value: Tensor
    plan: Tensor
    f: Tensor
    g: Tensor
    error: Tensor
    converged: Tensor
    evaluations: int


def sparse_shares(scores: Tensor, totals: Tensor, k: int | None, gamma: float) -> tuple[Tensor, Tensor]:
    """argmax_t <s, t> - gamma/2 ||t||^2 over t >= 0 with sum ``total`` and at most k entries that are not 0.

    The k largest scores, less a threshold so that they sum to the total: exact, although the set is not convex.

    Args:
        scores: s, (..., n, m): one problem a column.
        totals: (..., m), at least 0.
        k: at least 1; None: any number.
        gamma: above 0.

    Returns:
        t of shape (..., n, m), and the threshold (..., m): t = max(s - threshold, 0) / gamma on the k largest.
    """
    n = scores.shape[-2]
    top, where = scores.topk(min(k or n, n), dim=-2)
    over = top.cumsum(-2) - gamma * totals.unsqueeze(-2)
    count = torch.arange(1, top.shape[-2] + 1, device=top.device, dtype=top.dtype).unsqueeze(-1)
    used = (top * count > over).sum(-2, keepdim=True).clamp_min(1)  # none where the total is 0
    threshold = over.gather(-2, used - 1) / used
    values = (top - threshold).clamp_min(0) / gamma
    return torch.zeros_like(scores).scatter(-2, where, values), threshold.squeeze(-2)


@implements("sparsity-constrained-ot")
def sparse_ot(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    k: int | None,
    gamma: float,
    tol: float = 1e-6,
    iterations: int = 2000,
    check: bool = True,
) -> SparseCoupling:
    r"""Sparsity-constrained transport: a plan with at most k entries a column, by its concave semi-dual.

    Computes:
        The coupling of least cost plus gamma/2 times its squares in which every target receives from at most k sources;
        L-BFGS on the semi-dual, whose columns are projections of their k largest scores onto a simplex.

    Formula:
        \max_f \; \langle f, a \rangle - \sum_j \Omega_j^*(f - c_j)
        \Omega_j^*(s) = \max_{t \in b_j \Delta, |t|_0 \le k} \langle s, t \rangle - \frac{\gamma}{2} |t|^2
        t_j = \frac{1}{\gamma} \left[ \mathrm{top}_k(f - c_j) - \tau_j \right]_+ , \quad 1^\top t_j = b_j

    Helps:
        Where each target must have few partners: routing, matching, plans that people read. Sinkhorn's plans have no
        zeros; ``k=None`` is quadratic regularisation, sparse, but with no bound on the entries.

    Avoid:
        A k below the number of entries that quadratic regularisation itself uses: the maximum then lies at a tie and
        the plan misses the rows' weights, by a tenth to two thirds of the mass for k = 2 and 1 on 20 x 15 costs, which
        is what ``NotConverged`` says. Larger k, or a smaller gamma, mends it.

    Defaults:
        None for k and gamma: gamma has the unit of cost over mass, so with equal weights 1/n the plan spreads over
        about gamma / (n * range of costs) entries.

    Cost:
        A top-k of n scores for each of m columns, for every evaluation; some tens to hundreds of evaluations.

    Reference:
        Liu, Puigcerver, Blondel 2023, Sparsity-Constrained Optimal Transport, arXiv 2209.15466, the semi-dual with the
        squared 2-norm. For k = 1 its maximum is that of the linear program plus gamma/2 times the sum of b^2.

    Args:
        cost: (..., n, m), finite.
        a, b: weights (..., n) and (..., m) with sum 1; None: equal weights.
        k: entries allowed in a column, at least 1; None: any number.
        gamma: of the quadratic regularisation, above 0.
        tol: on the L1 error of the rows' sums.
        iterations: of L-BFGS, at most.
        check: raise where the tolerance is not met.

    Returns:
        value, plan, potentials and error.

    Raises:
        NotConverged: where the tolerance is not met, unless ``check`` is False.
        ValueError: for what is no transport problem, or k, gamma, tol or iterations out of range.
    """
    if (k is not None and k < 1) or not gamma > 0 or not tol > 0 or iterations < 1:
        raise ValueError(
            f"k and iterations must be at least 1, gamma and tol above 0, got {k}, {iterations}, {gamma:g}, {tol:g}"
        )
    with torch.no_grad():
        p = entropic(cost, a, b, 1.0)
        f = torch.zeros_like(p.a)
        optimizer = torch.optim.LBFGS(
            [f],
            max_iter=iterations,
            max_eval=2 * iterations,
            history_size=20,
            tolerance_grad=tol / (2 * f.shape[-1]),
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        evaluations = 0

        def evaluate(f: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            nonlocal evaluations
            evaluations += 1
            scores = f.unsqueeze(-1) - p.cost
            plan, threshold = sparse_shares(scores, p.b, k, gamma)
            conjugate = (scores * plan - gamma / 2 * plan.square()).sum((-2, -1))
            return (f * p.a).sum(-1) - conjugate, plan, threshold, (plan.sum(-1) - p.a).abs().sum(-1)

        def closure() -> Tensor:
            value, plan, _, _ = evaluate(f)
            f.grad = plan.sum(-1) - p.a
            return -value.sum()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        value, plan, threshold, error = evaluate(f)
        for _ in range(10):  # the semi-dual is piecewise quadratic: Newton on its last piece ends what line searches
            if bool((error <= tol).all()):  # cannot see for rounding
                break
            used = (plan > 0).to(f)
            counts = used.sum(-1).clamp_min(1)
            moved = f + gamma * newton_direction(used, counts, p.a - plan.sum(-1), used.sum(-2))
            tried = evaluate(moved)
            if not bool((tried[-1] <= error).all()):
                break
            f, (value, plan, threshold, error) = moved, tried
    converged = error <= tol
    if check and not bool(converged.all()):
        raise NotConverged(
            f"row error {float(error.amax()):.1e} after {evaluations} evaluations, not {tol:g}: the entries allowed in "
            f"a column ({k or 'any number'}) or the iterations are too few; check=False returns the plan as it is"
        )
    weights = (p.a if a is None else a, p.b if b is None else b)
    value = transport_value(value, cost, *weights, plan, f, -threshold)
    return SparseCoupling(value, plan.to(cost.dtype), f, -threshold, error, converged, evaluations)
