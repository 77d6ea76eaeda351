"""Sparsity-constrained optimal transport, Liu, Puigcerver, Blondel 2023."""

from itertools import pairwise

import numpy as np
import torch

from ...parts.sinkhorn import sinkhorn
from ...transport.sparse_ot import sparse_ot
from ..claim import Claim
from ..mutation import Mutation, fixed

N, M, GAMMA = 20, 15, 1.0
KS = (1, 2, 3, 4, 6, N)


def linear_program(cost: torch.Tensor) -> float:
    """Least cost of a coupling with equal weights."""
    from scipy.optimize import linprog

    sums = np.concatenate([np.kron(np.eye(N), np.ones(M)), np.kron(np.ones(N), np.eye(M))])
    return float(linprog(cost.numpy().ravel(), A_eq=sums, b_eq=np.repeat([1 / N, 1 / M], [N, M])).fun)


def run(seed: int) -> dict[str, dict[str, float]]:
    """How far the plans are from what the paper proves of them."""
    cost = torch.rand(N, M, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = {k: sparse_ot(cost, k=k, gamma=GAMMA, check=False) for k in KS}
    values = [float(found[k].value) for k in KS]
    full = found[N]
    primal = float((full.plan * cost).sum() + GAMMA / 2 * full.plan.square().sum())
    dense = sinkhorn(cost, epsilon=0.05 * float(cost.mean())).plan
    return {
        "errors": {
            "entries beyond k": max(int((found[k].plan > 0).sum(0).max()) - k for k in KS[:-1]),
            "columns' sums": max(float((found[k].plan.sum(0) - 1 / M).abs().sum()) for k in KS),
            "rows' sums at k = n": float(full.error),
            "duality gap at k = n": abs(primal - values[-1]),
            "rise of the value with k": max(b - a for a, b in pairwise(values)),
            "value above the linear program's": values[0] - linear_program(cost) - GAMMA / (2 * M),
            "zeros in Sinkhorn's plan": int((dense == 0).sum()),
        }
    }


CLAIM = Claim(
    paper="sparsity-constrained-ot",
    statement="Plans have at most k entries a column at any k; at k = n the semi-dual solves quadratic transport "
    "without a gap, and as k falls its value rises towards, and never above, the linear program's plus a constant.",
    arena=f"{N} x {M} costs uniform in [0, 1], equal weights, gamma {GAMMA:g}, k = {', '.join(map(str, KS))}; the "
    "linear program by SciPy; five seeds",
    quantity="error",
    kind="exact",
    tolerance=1e-5,  # ten times the marginal error at which the solver stops, as costs are at most 1
    run=run,
    mutation=Mutation(
        words="every entry allowed, whatever k",
        target="wellposed.transport.sparse_ot:sparse_shares",
        by=fixed(k=None),
    ),
)
