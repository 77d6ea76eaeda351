"""STEP, Lu et al. 2023."""

from typing import Any

from ...sparsity.step_adam import STEPAdam, nm_groups
from ..arenas import digits, fit, mlp, quality
from ..claim import Claim
from ..mutation import Mutation, fixed

EPOCHS, ROWS = 30, 600


def trained(seed: int, **settings: Any) -> dict[str, float]:
    """Quality of a 1:16 sparse net."""
    sample, model = digits(seed, ROWS), mlp(seed, 64, 128, 128, 10)
    groups = nm_groups(model, 1, 16)
    optimizer = STEPAdam(groups, lr=1e-3, decay=2e-4, steps=EPOCHS * (ROWS // 32), **settings)
    fit(model, sample, seed=seed, epochs=EPOCHS, lr=1e-3, optimizer=optimizer)
    return quality(model, sample)


CLAIM = Claim(
    paper="step-nm-sparsity",
    statement="At 1:16 sparsity under Adam, a net whose second moment is frozen before the masks are learned has a "
    "higher test accuracy than one that learns them from the start (SR-STE).",
    arena="digits, 600 training scans; MLP 64-128-128-10, lr 1e-3, batch 32, 30 epochs; 1:16 on all weights, decay of "
    "hidden weights 2e-4",
    quantity="accuracy",
    margin=1.0,
    run=lambda seed: {
        "with": trained(seed),
        "without": trained(seed, switch=0, freeze=False),
    },
    mutation=Mutation(
        "masks from the start, the second moment never frozen",
        "wellposed.sparsity.step_adam:STEPAdam",
        fixed(switch=0, freeze=False),
    ),
)
