"""Second-order regression models at the edge of stability, Agarwala et al. 2022."""

import torch

from ...theory.edge_of_stability import QuadraticRegression
from ..claim import Claim, Curve
from ..mutation import Mutation, zero

RATES = [0.25, 0.5, 0.75, 1.0, 1.2]
DRAWS, STEPS = 3, 1500


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """The same random models at several learning rates: median eigenvalue at the end."""
    g = torch.Generator().manual_seed(seed)
    models = [QuadraticRegression.random(20, 40, 0.06, g) for _ in range(DRAWS)]
    ends = [
        float(torch.stack([m.run(rate, STEPS, enough=1e-6).eigenvalue[-1] for m in models]).median()) for rate in RATES
    ]
    return {
        "curve": {
            "learning rate": RATES,
            "start": [1.0] * len(RATES),
            "end": ends,
            "edge, 2 / learning rate": [2 / rate for rate in RATES],
        }
    }


def approached(curve: Curve) -> float:
    """How much of the way from the start to the edge is gone at the two largest rates; overshoot counts against it."""
    rows = list(zip(curve["start"], curve["end"], curve["edge, 2 / learning rate"], strict=True))[-2:]
    return sum(1 - abs(edge - end) / (edge - start) for start, end, edge in rows) / len(rows)


CLAIM = Claim(
    paper="quadratic-regression-edge-of-stability",
    statement="Outputs that are quadratic in the weights are enough for progressive sharpening: the largest eigenvalue "
    "of the tangent kernel rises under gradient descent and, where the learning rate is large, ends near 2 / rate.",
    arena=f"random quadratic models of 20 outputs and 40 weights, eigenvalue 1 and residual 0.06 at the start, {DRAWS} "
    f"a seed; gradient descent until fitted, at most {STEPS} steps",
    quantity="share of the way from the first eigenvalue to 2 / learning rate, at rates 1 and 1.2",
    kind="curve",
    gain=approached,
    margin=0.4,
    run=run,
    mutation=Mutation(
        words="no curvature: outputs linear in the weights",
        target="wellposed.theory.edge_of_stability:bend",
        by=zero,
    ),
)
