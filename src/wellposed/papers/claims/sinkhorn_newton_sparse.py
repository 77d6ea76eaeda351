"""Sinkhorn-Newton-Sparse, Tang and others 2024."""

import math

import torch

from ...transport.sinkhorn_newton_sparse import sinkhorn_newton_sparse
from ..claim import Claim
from ..mutation import Mutation, zero

N, EPSILON = 200, 1 / 1200


def run(seed: int) -> dict[str, dict[str, float]]:
    """Logarithm of the marginal error (decades), after as much arithmetic in both arms."""
    cost = torch.rand(N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = sinkhorn_newton_sparse(cost, epsilon=EPSILON, density=5 / N, check=False)
    steps = found.coupling.newton_steps
    # multiplications: the thinned product and the Cholesky factor of each step, and 4 N^2 for each plan
    newton = steps * (found.kept * N**3 + N**3 / 6) + 4 * found.evaluations * N**2
    sweeps = found.coupling.sweeps + math.ceil(newton / (2 * N**2))
    plain = sinkhorn_newton_sparse(cost, epsilon=EPSILON, sweeps=sweeps, newton_steps=0, check=False)
    return {
        "with": {"log10 error": math.log10(found.errors[-1]), "sweeps": 20, "Newton steps": steps},
        "without": {"log10 error": math.log10(plain.errors[-1]), "sweeps": sweeps, "Newton steps": 0},
    }


CLAIM = Claim(
    paper="sinkhorn-newton-sparse",
    statement="At a small epsilon a few sweeps and Newton steps whose Hessian keeps 2.5 % of the plan come far closer "
    "to the marginals than Sinkhorn does with as much arithmetic.",
    arena=f"random assignments: {N} x {N} costs uniform in [0, 1], equal weights, epsilon 1/1200; 20 sweeps, density "
    f"5/{N}, stopped at an error of 1e-10; arithmetic counted in multiplications",
    quantity="log10 error",
    direction="lower",
    margin=2.0,
    run=run,
    mutation=Mutation(
        words="the Newton direction times 0",
        target="wellposed.parts.entropic:newton_direction",
        by=zero,
    ),
)
