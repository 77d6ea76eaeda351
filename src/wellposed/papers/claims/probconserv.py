"""Conservation laws where the model is unsure, Hansen et al. 2023."""

import math

import torch
from torch import Tensor

from ...science.conservation import conservation_update, trapezoid_operator
from ..claim import Claim
from ..mutation import Function, Mutation

GRID = torch.linspace(0, 1, 101, dtype=torch.float64)
PROFILES, SAMPLES = 40, 50
FRONT = 0.5  # the value at which the Stefan profile drops to 0


def stefan(position: Tensor) -> Tensor:
    """Melting front at ``position`` (...): from 1 down to FRONT along an error function, then 0. Shape (..., 101)."""
    a = _root()
    inside = 1 - (1 - FRONT) * torch.erf(a * GRID / position[..., None]) / math.erf(a)
    return inside * (position[..., None] >= GRID)


def porous(position: Tensor) -> Tensor:
    """Front of a porous-medium equation: (1 - x / position)^(1/3), then 0."""
    return (1 - GRID / position[..., None]).clamp_min(0) ** (1 / 3)


def _root() -> float:
    """How fast the front moves: (1 - FRONT) / sqrt(pi) = FRONT a erf(a) exp(a^2), by bisection."""
    low, high = 0.0, 2.0
    for _ in range(60):
        a = (low + high) / 2
        below = FRONT * a * math.erf(a) * math.exp(a * a) < (1 - FRONT) / math.sqrt(math.pi)
        low, high = (a, high) if below else (low, a)
    return low


def run(seed: int) -> dict[str, dict[str, float]]:
    """The update with the covariance of the predictive samples, and with one variance for all points."""
    g = torch.Generator().manual_seed(seed)
    position = 0.3 + 0.5 * torch.rand(PROFILES, generator=g, dtype=torch.float64)
    G = trapezoid_operator(GRID)
    found: dict[str, dict[str, float]] = {"with": {}, "without": {}}
    for name, profile in (("Stefan", stefan), ("porous medium", porous)):
        seen = position + 0.08 * torch.randn(PROFILES, generator=g, dtype=torch.float64)
        guessed = seen[:, None] + 0.08 * torch.randn(PROFILES, SAMPLES, generator=g, dtype=torch.float64)
        truth, samples = profile(position), profile(guessed.clamp_min(0.05))
        mean, cov = samples.mean(1), torch.stack([torch.cov(s.T) for s in samples])
        mass = truth @ G.T
        for arm, uncertainty in (("with", cov), ("without", torch.ones_like(mean))):
            after, _ = conservation_update(mean, uncertainty, G, mass)
            found[arm] |= {
                f"log mean squared error, {name}": float((after - truth).square().mean().log()),
                f"front error, {name}": float((_front(after) - _front(truth)).abs().mean()),
                f"largest mass error, {name}": float((after @ G.T - mass).abs().max()),
            }
    return found


def _front(u: Tensor) -> Tensor:
    """Share of the points where the profile is above half of FRONT: where its front lies."""
    return (u > FRONT / 2).double().mean(-1)


def one_variance(original: Function) -> Function:
    """The update as if all points were equally uncertain."""

    def update(mean: Tensor, cov: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        updated: tuple[Tensor, Tensor] = original(mean, torch.ones_like(mean), *rest)
        return updated

    return update


CLAIM = Claim(
    paper="probconserv",
    statement="Where the mass of a profile with a moving front is known, imposing it with the prediction's own "
    "covariance, which is large at the front, leaves a smaller squared error than imposing it as if all points were "
    "equally uncertain.",
    arena=f"{PROFILES} Stefan profiles on {len(GRID)} points a seed, front at 0.3 to 0.8; the prediction is mean and "
    f"covariance of {SAMPLES} profiles whose fronts scatter by 0.08 about an observation that is itself 0.08 off; mass "
    "by the trapezoidal rule. Beside it the porous-medium profile",
    quantity="log mean squared error, Stefan",
    direction="lower",
    margin=0.2,  # a third of the 0.62 seen on other seeds
    run=run,
    mutation=Mutation(
        words="one variance for all points in place of the covariance",
        target="wellposed.science.conservation:conservation_update",
        by=one_variance,
    ),
)
