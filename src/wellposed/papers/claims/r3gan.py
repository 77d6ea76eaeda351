"""R3GAN, Huang et al. 2025."""

from __future__ import annotations

import cmath

import torch
from torch import Tensor, nn

from ...core import Recipe
from ...generative.r3gan import ZeroCenteredPenalty
from ...tasks import Discriminate, Generate
from ..claim import Claim
from ..mutation import Mutation, zero

STEPS, LR, NEAR = 400, 0.2, 1e-5
BATCH = {"x": torch.zeros(1, 1, dtype=torch.float64), "z": torch.zeros(1, 1, dtype=torch.float64)}


class Slope(nn.Module):
    """The discriminator psi x."""

    def __init__(self, psi: float) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.tensor(psi, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1) to (B,)."""
        return self.psi * x[:, 0]


class Point(nn.Module):
    """The generator: theta, whatever z."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        """(B, 1) to (B, 1)."""
        return self.theta.expand_as(z)


def play(psi: float, theta: float, gamma: float, steps: int, lr: float) -> tuple[float, float]:
    """The Dirac GAN, all real samples at 0: where alternating gradient steps from (psi, theta) lead."""
    judge, maker = Slope(psi), Point(theta)
    judging = Recipe(ZeroCenteredPenalty(strength=gamma)).attach(judge, Discriminate(maker))
    making = Recipe().attach(maker, Generate(judge))
    for_judge = torch.optim.SGD(judge.parameters(), lr=lr)
    for_maker = torch.optim.SGD(maker.parameters(), lr=lr)
    for _ in range(steps):
        judging.step(BATCH, for_judge)
        making.step(BATCH, for_maker)
    return judge.psi.item(), maker.theta.item()


def field(psi: float, theta: float, gamma: float) -> tuple[float, float]:
    """Minus the gradient of each player's loss by its own weight."""
    judge, maker = Slope(psi), Point(theta)
    still = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (judge, maker)]
    Recipe(ZeroCenteredPenalty(strength=gamma)).attach(judge, Discriminate(maker)).step(BATCH, still[0])
    Recipe().attach(maker, Generate(judge)).step(BATCH, still[1])
    assert judge.psi.grad is not None
    assert maker.theta.grad is not None
    return -judge.psi.grad.item(), -maker.theta.grad.item()


def eigenvalues(gamma: float) -> list[complex]:
    """Of the field's Jacobian at the equilibrium (0, 0), by central differences."""
    by_psi = [(a - b) / (2 * NEAR) for a, b in zip(field(NEAR, 0, gamma), field(-NEAR, 0, gamma), strict=True)]
    by_theta = [(a - b) / (2 * NEAR) for a, b in zip(field(0, NEAR, gamma), field(0, -NEAR, gamma), strict=True)]
    jacobian = torch.tensor([by_psi, by_theta], dtype=torch.float64).T
    found: list[complex] = torch.linalg.eigvals(jacobian).tolist()
    return sorted(found, key=lambda v: v.imag)


def run(seed: int) -> dict[str, dict[str, float]]:
    """A random strength below 1/2, and a random start."""
    g = torch.Generator().manual_seed(seed)
    share, psi, theta = torch.rand(3, generator=g, dtype=torch.float64).tolist()
    gamma = 0.3 + 0.1 * share

    def off(gamma: float) -> float:
        root = cmath.sqrt(gamma**2 - 1 / 4)
        wanted = sorted([-gamma - root, -gamma + root], key=lambda v: v.imag)
        return max(abs(a - b) for a, b in zip(eigenvalues(gamma), wanted, strict=True))

    end = play(0.5 + psi, 0.5 + theta, gamma, STEPS, LR)
    return {
        "errors": {
            "eigenvalues": off(gamma),
            "eigenvalues without penalties": off(0.0),
            "distance after training": abs(complex(*end)),
        }
    }


CLAIM = Claim(
    paper="r3gan",
    statement="In the Dirac GAN the relativistic game with both zero-centred penalties converges to its equilibrium, "
    "where the gradient field has the eigenvalues -gamma +- sqrt(gamma^2 - 1/4), and +- i/2 without them.",
    arena="closed form; discriminator psi x, generator theta, real samples at 0, float64; Jacobian by central "
    "differences of the two recipes' gradients, gamma in [0.3, 0.4]; 400 alternating steps of gradient descent with "
    "rate 0.2 from a random start in [0.5, 1.5]^2",
    quantity="error",
    kind="exact",
    tolerance=1e-8,
    run=run,
    mutation=Mutation(
        words="penalties of 0",
        target="wellposed.generative.r3gan:squared_slope",
        by=zero,
    ),
)
