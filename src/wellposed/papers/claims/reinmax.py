"""ReinMax, Liu et al. 2023."""

from __future__ import annotations

import torch
from torch import Tensor

from ...generative.reinmax import estimator_bias, reinmax
from ..claim import Claim
from ..mutation import Mutation, fixed

QUADRATICS = 20


def run(seed: int) -> dict[str, dict[str, float]]:
    """Random quadratics of one variable of 3 to 6 categories, and sums of quadratics of three variables."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    one = several = 0.0
    for i in range(QUADRATICS):
        categories = 3 + i % 4
        a, b = normal(categories, categories), normal(categories)

        def quadratic(d: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
            return ((d @ a * d).sum(-1) + d @ b).reshape(len(d), -1).sum(1)

        one = max(one, estimator_bias(reinmax, quadratic, normal(categories)).relative)
        several = max(several, estimator_bias(reinmax, quadratic, normal(3, categories)).relative)
    return {"errors": {"one variable": one, "three variables": several}}


CLAIM = Claim(
    paper="reinmax",
    statement="The expectation of ReinMax's gradient is the exact gradient for every quadratic function of a "
    "categorical sample: it is accurate to second order.",
    arena="closed form; 20 random quadratics of 3 to 6 categories and normal logits, float64, and sums of them over "
    "three variables; all outcomes enumerated",
    quantity="length of the difference of the two gradients, relative to the exact one",
    kind="exact",
    tolerance=1e-9,
    run=run,
    mutation=Mutation(
        words="a temperature of 2, which moves the midpoint",
        target="wellposed.generative.reinmax:reinmax",
        by=fixed(tau=2.0),
    ),
)
