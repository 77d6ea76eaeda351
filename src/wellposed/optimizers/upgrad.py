"""Jacobian descent: many objectives, one update that conflicts with none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ._rowwise import Rowwise

__all__ = [
    "UPGrad",
    "dual_proj_weights",
    "gramian",
    "jacobian_backward",
    "mean_weights",
    "mgda_weights",
    "upgrad",
    "upgrad_weights",
]


def upgrad_weights(
    gram: Tensor, preference: Tensor | None = None, norm_eps: float = 1e-4, reg_eps: float = 1e-4
) -> Tensor:
    """Weights of the rows in UPGrad: each row projected onto the dual cone of all rows, then averaged.

    Args:
        gram: G = J J', inner products of the m gradients, (m, m).
        preference: share of each row in the average, (m,); 1/m by default.
        norm_eps: a G with a smaller trace counts as zero, and the weights are then the preference.
        reg_eps: added to the diagonal of G / trace(G). It makes the solution unique, and lets J A(J) be negative by at
            most reg_eps trace(G) w.

    Returns:
        w of shape (m,), at least ``preference``, with A(J) = J' w = sum_i p_i J' argmin_{v >= e_i} v' G v;
        Quinton, Rey 2024 (arXiv 2406.16232), Eq. 5. Solved exactly, in float64 on the CPU.
    """
    g, share = _normalised(gram, norm_eps, reg_eps), _preference(gram, preference)
    return (share @ (torch.eye(len(g), dtype=g.dtype) + _nonnegative(g, -g))).to(gram)


def dual_proj_weights(
    gram: Tensor, preference: Tensor | None = None, norm_eps: float = 1e-4, reg_eps: float = 1e-4
) -> Tensor:
    """Weights that project the mean of the rows onto their dual cone: argmin_{v >= p} v' G v; as ``upgrad_weights``.

    Lopez-Paz, Ranzato 2017 (GEM, arXiv 1706.08840), Eq. 11, with the mean as the vector to project.
    """
    g, share = _normalised(gram, norm_eps, reg_eps), _preference(gram, preference)
    return (share + _nonnegative(g, -(share @ g)[None])[0]).to(gram)


def mgda_weights(gram: Tensor, norm_eps: float = 1e-4, reg_eps: float = 1e-6) -> Tensor:
    """Weights of the shortest vector in the convex hull of the rows: argmin of w' G w over the simplex.

    Desideri 2012; Sener, Koltun 2018 (arXiv 1810.04650), Eq. 3. Arguments as in ``upgrad_weights``.
    """
    # the nonnegative u that minimises u' G u + (1' u - 1)^2 is a multiple of the answer
    u = _nonnegative(_normalised(gram, norm_eps, reg_eps) + 1, torch.ones(1, len(gram), dtype=torch.float64))[0]
    return (u / u.sum()).to(gram)


def mean_weights(gram: Tensor, preference: Tensor | None = None) -> Tensor:
    """Plain averaging: 1/m each, or the preference."""
    return _preference(gram, preference).to(gram)


def upgrad(jacobian: Tensor, weigh: Callable[[Tensor], Tensor] = upgrad_weights) -> Tensor:
    """One vector from the gradients of m objectives: A(J) = J' w.

    Args:
        jacobian: one gradient a row, (m, d).
        weigh: (m, m) Gram matrix -> (m,) weights.

    Returns:
        (d,); with ``upgrad_weights`` no row has a negative inner product with it (up to ``reg_eps``).
    """
    return weigh(gramian([jacobian])) @ jacobian


def gramian(jacobian: Iterable[Tensor]) -> Tensor:
    """J J' of a Jacobian given in pieces (m, ...), one for each parameter, summed without joining them; (m, m)."""
    total = None
    for piece in jacobian:
        rows = piece.flatten(1)
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            product = rows @ rows.T
            total = product if total is None else total + product
    if total is None:
        raise ValueError("gramian needs the Jacobian of at least one parameter that the objectives depend on")
    return total


def jacobian_backward(
    losses: Sequence[Tensor], params: Iterable[Tensor], weigh: Callable[[Tensor], Tensor] = upgrad_weights
) -> Tensor:
    """Like ``backward``, for several losses: add A(J) to the ``.grad`` of ``params``.

    Args:
        losses: m scalars of one graph, one per task.
        params: leaf tensors; those that no loss depends on keep their ``.grad``.
        weigh: (m, m) Gram matrix -> (m,) weights: ``upgrad_weights``, ``mgda_weights`` and so on.

    Returns:
        the weights, (m,). Holds m gradients in memory.
    """
    leaves = list(params)
    jacobian = _jacobian(torch.stack(list(losses)), leaves, retain=False)
    weights = weigh(gramian(j for j in jacobian if j is not None))
    for p, j in zip(leaves, jacobian, strict=True):
        if j is not None:
            g = torch.tensordot(weights.to(j.dtype), j, 1)
            p.grad = g if p.grad is None else p.grad + g
    return weights


def _jacobian(values: Tensor, params: Sequence[Tensor], retain: bool) -> tuple[Tensor | None, ...]:
    """Derivatives of ``values`` (m,) by each parameter, (m, *shape); None where there is no dependence."""
    rows = torch.eye(len(values), dtype=values.dtype, device=values.device)
    return torch.autograd.grad(values, params, rows, retain_graph=retain, allow_unused=True, is_grads_batched=True)


def _preference(gram: Tensor, preference: Tensor | None) -> Tensor:
    if preference is None:
        return torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)
    return preference.detach().to("cpu", torch.float64)


def _normalised(gram: Tensor, norm_eps: float, reg_eps: float) -> Tensor:
    g = gram.detach().to("cpu", torch.float64)
    trace = g.trace()
    g = g / trace if trace >= norm_eps else torch.zeros_like(g)
    return g + reg_eps * torch.eye(len(g), dtype=g.dtype)


def _nonnegative(h: Tensor, linear: Tensor) -> Tensor:
    """Rows u >= 0 that minimise u' H u - 2 c' u, one for each row c of ``linear`` (k, m).

    Block principal pivoting (Kim, Park 2011, SIAM J. Sci. Comput. 33): guess which entries are free, solve for them,
    and exchange all that came out with the wrong sign; where that stops helping, only the last of them, which ends
    after finitely many exchanges for a positive definite H. In numpy, whose calls on small arrays cost least.
    """
    tolerance = 1e-10  # entries of H are at most about 1; below this a sign is rounding
    hessian, slope = h.numpy(), linear.numpy()
    m = slope.shape[1]
    result, eye = np.zeros_like(slope), np.eye(m)
    unsolved = np.flatnonzero((slope > 0).any(1))  # u = 0 solves the others
    free = slope[unsolved] > 0
    fewest, patience = np.full(len(unsolved), m + 1), np.full(len(unsolved), 3)
    for _ in range(100 + 10 * m):
        if not len(unsolved):
            break
        c = slope[unsolved]
        system = np.where(free[:, :, None] & free[:, None, :], hessian, eye)
        u = np.linalg.solve(system, np.where(free, c, 0.0)[:, :, None])[:, :, 0]
        result[unsolved] = u
        wrong = np.where(free, u, u @ hessian - c) < -tolerance
        count = wrong.sum(1)
        left = count > 0
        unsolved, free, wrong, count, fewest, patience = (
            v[left] for v in (unsolved, free, wrong, count, fewest, patience)
        )
        patience = np.where(count < fewest, 3, patience - 1)
        fewest = np.minimum(fewest, count)
        last = wrong & (np.arange(m) == m - 1 - wrong[:, ::-1].argmax(1)[:, None])
        free = free ^ np.where((patience >= 0)[:, None], wrong, last)
    return torch.from_numpy(result.clip(min=0))


class UPGrad(Method, paper="upgrad"):
    r"""Jacobian descent with UPGrad: step in a direction along which no training example's loss rises.

    Computes:
        The gradient of every example's loss (or of every group's mean), each projected onto the cone of directions
        that conflict with none of them; their average is the update. Only the Gram matrix of the gradients is needed
        to find the weights; the update is then the gradient of the weighted losses. Terms that are not per example
        (penalties on weights) are added as they are.

    Formula:
        A(J) = \frac{1}{m} \sum_{i=1}^{m} J^{\top} w_i
        w_i = \mathrm{argmin}_{v \ge e_i} \; v^{\top} J J^{\top} v

    Helps:
        Where the mean gradient sacrifices hard or rare examples: on 256 digits the mean conflicted with some example
        in 97 % of steps, and at the same learning rate the worst tenth ended with a lower loss.

    Avoid:
        Expecting better generalisation: test accuracy was the same. Its step is also longer than the mean's; with the
        mean at twice the learning rate (equal mean loss) the worst tenth was better off under the mean.

    Defaults:
        One row per example, as in the paper's instance-wise risk minimisation; the normalisation and regularisation
        constants 1e-4 are the authors'.

    Cost:
        In chains of linear layers and 2-d convolutions a further backward pass by the activations alone. In any other
        model, or beside methods that act on single losses, a backward pass per row and rows times the gradient's
        memory; ``groups`` bounds it. A small quadratic program on the CPU (the device is waited for once).

    Reference:
        Quinton, Rey 2024, Jacobian Descent for Multi-Objective Optimization, arXiv 2406.16232, Eq. 5 and section 5.
        For losses of several tasks use ``jacobian_backward``.

    Args:
        groups: rows of the Jacobian, means over consecutive examples; None: one per example.
    """

    null = {"groups": 1}
    exact = False
    stops = True

    groups: int | None = knob(None, low=1)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.rowwise = Rowwise()
        if self.groups != 1:
            self.rowwise.insert(model, task)

    def teardown(self, model: nn.Module) -> None:
        self.rowwise.remove()

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        if self.groups == 1:
            compute()
            return
        params = list(step.params().values())

        def weigh(rows: Tensor) -> Tensor:
            share = step.task.weight(step.batch)
            share = torch.ones_like(rows) if share is None else share.to(rows)
            share = share / share.sum()
            count = min(self.groups or len(rows), len(rows))
            group = torch.arange(len(rows), device=rows.device) * count // len(rows)
            member = (group == torch.arange(count, device=rows.device)[:, None]) * share
            size = member.sum(1)
            member = member / size.clamp(min=torch.finfo(size.dtype).tiny)[:, None]
            single = self.rowwise.gramian(rows)
            if single is None:
                jacobian = _jacobian((member * rows).sum(1), params, retain=True)
                gram = gramian(j for j in jacobian if j is not None)
            else:
                gram = member.to(single) @ single @ member.to(single).T
            return upgrad_weights(gram, size).to(rows) @ member

        with self.rowwise.watching(m for m in step.recipe.listed if m is not self), step.weighing(weigh):
            compute()

    def passes(self) -> float:
        """One or all rows' backward passes beside the usual pass; in unknown models, for batches of 32 rows."""
        if self.groups == 1:
            return 1.0
        known = "rowwise" in self.__dict__ and self.rowwise.layers
        return 1.0 + (1 / 3 if known else 2 / 3 * (self.groups or 32))
