"""Monge gap, Uscidda, Cuturi 2023."""

import math

import torch
from torch import Tensor

from ...transport.monge_gap import monge_gap, sinkhorn_divergence
from ..arenas import mlp
from ..claim import Claim
from ..mutation import Mutation, zero

STEPS, BATCH, EPSILON, LR, STRENGTH = 200, 64, 0.1, 5e-3, 0.1


def target(seed: int) -> tuple[Tensor, Tensor]:
    """A random normal law by its optimal map from the standard one: x -> x root + mean."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(2, 2, generator=g)
    values, vectors = torch.linalg.eigh(factor @ factor.T + 0.1 * torch.eye(2))
    return vectors @ values.sqrt().diag() @ vectors.T, 2 * torch.randn(2, generator=g)


def unexplained(seed: int, strength: float) -> dict[str, float]:
    """Variance of the optimal map that a fitted net leaves unexplained, logarithm and percent."""
    root, mean = target(seed)
    g = torch.Generator().manual_seed(seed)
    net = mlp(seed, 2, 64, 64, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        x, y = torch.randn(2, BATCH, 2, generator=g)
        images = net(x)
        loss = sinkhorn_divergence(images, y @ root + mean, epsilon=EPSILON, tol=1e-2)
        if strength:
            loss = loss + strength * monge_gap(x, images, epsilon=EPSILON, tol=1e-2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    x = torch.randn(2000, 2, generator=g)
    with torch.no_grad():
        missed = float((net(x) - x @ root - mean).square().sum(-1).mean() / root.square().sum())
    return {"log unexplained variance": math.log(missed), "percent": 100 * missed}


CLAIM = Claim(
    paper="monge-gap",
    statement="A net fitted to a target law with the Monge gap is closer to the optimal map than one without it.",
    arena=f"standard to random normal laws in 2 dimensions, whose optimal map is known; MLP 2-64-64-2 fitted by the "
    f"Sinkhorn divergence, epsilon {EPSILON}, batch {BATCH}, Adam {LR:g} falling to 0 in {STEPS} steps; strength "
    f"{STRENGTH}",
    quantity="log unexplained variance",
    direction="lower",
    margin=0.6,  # three tenths of the 2.1 seen on other seeds
    run=lambda seed: {"with": unexplained(seed, STRENGTH), "without": unexplained(seed, 0.0)},
    mutation=Mutation(
        words="the gap times 0",
        target="wellposed.transport.monge_gap:monge_gap",
        by=zero,
    ),
)
