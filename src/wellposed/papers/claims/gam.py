"""Gradient norm aware minimisation, Zhang et al. 2023."""

from torch import nn
from torch.nn.functional import cross_entropy

from ...smoothness.gam import GAM, first_order_flatness
from ...smoothness.sam import SAM
from ..arenas import Arena, Sample, curvature, digits
from ..claim import Claim
from ..mutation import Mutation, fixed

ARENA = Arena(
    "digits, 400 training scans with 20 % wrong labels; MLP 64-64-64-10, AdamW 1e-3, batch 32, 25 epochs",
    lambda seed: digits(seed, 400, wrong=0.2), (64, 64), epochs=25, lr=1e-3,
)  # fmt: skip


def measure(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Quality, the largest eigenvalue, and the largest gradient near by."""
    flatness = first_order_flatness(
        lambda: cross_entropy(model(sample.x), sample.y), dict(model.named_parameters()), rho=0.1
    )
    return curvature(model, sample) | {"log first-order flatness": float(flatness.log())}


CLAIM = Claim(
    paper="gam",
    statement="Minimising the largest gradient norm in a ball as well finds minima whose largest Hessian eigenvalue is "
    "lower than that of SAM's minima with the same radius.",
    arena=ARENA.words + "; all radii 0.1, gamma 0.1",
    quantity="log largest Hessian eigenvalue",
    direction="lower",
    margin=0.1,  # two fifths of the -0.25 seen on other seeds
    run=lambda seed: ARENA.pair(seed, GAM(rho=0.1, rho_norm=0.1, gamma=0.1), measure, without=SAM(rho=0.1)),
    mutation=Mutation(
        words="the ascent of the gradient's norm left out (rho_norm 0)",
        target="wellposed.smoothness.gam:GAM",
        by=fixed(rho_norm=0.0),
    ),
)
