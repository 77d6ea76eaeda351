"""UPGrad, Quinton, Rey 2024."""

from functools import partial

import torch
from torch import Tensor

from ...optimizers.upgrad import upgrad, upgrad_weights
from ..claim import Claim
from ..mutation import Mutation, zero

exactly = partial(upgrad_weights, norm_eps=0.0, reg_eps=0.0)


def independent(jacobian: Tensor) -> Tensor:
    """UPGrad with every row's projection found by another solver: nonnegative least squares."""
    from scipy.optimize import nnls

    rows = jacobian.numpy().T
    total = 0.0
    for row in rows.T:
        extra, _ = nnls(rows, -row)
        total = total + (row + rows @ extra) / len(rows.T)
    return torch.as_tensor(total)


def run(seed: int) -> dict[str, dict[str, float]]:
    """200 random Jacobians (5, 20)."""
    g = torch.Generator().manual_seed(seed)
    conflict = additivity = difference = 0.0
    for _ in range(200):
        j = torch.randn(5, 20, generator=g, dtype=torch.float64)
        found = upgrad(j, exactly)
        conflict = max(conflict, float(-(j @ found).min()))
        one, two = torch.rand(2, 5, 1, generator=g, dtype=torch.float64)
        both = upgrad(one * j, exactly) + upgrad(two * j, exactly)
        additivity = max(additivity, float((upgrad((one + two) * j, exactly) - both).abs().max()))
        difference = max(difference, float((found - independent(j)).abs().max()))
    return {"errors": {"conflict with a row": conflict, "additivity": additivity, "another solver": difference}}


CLAIM = Claim(
    paper="upgrad",
    statement="UPGrad's direction conflicts with no row of the Jacobian, and is linear in the scale of the rows.",
    arena="closed form; 200 random Jacobians of 5 rows and 20 columns, float64, without regularization of the Gramian",
    quantity="error",
    kind="exact",
    tolerance=1e-10,
    run=run,
    mutation=Mutation(
        words="rows averaged without being projected",
        target="wellposed.optimizers.upgrad:_nonnegative",
        by=zero,
    ),
)
