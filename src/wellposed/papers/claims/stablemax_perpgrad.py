"""Grokking at the edge of numerical stability, Prieto et al. 2025."""

import torch

from ...core import Method
from ...objectives.perp_grad import PerpGrad
from ..arenas import Sample, fit, mlp, quality
from ..claim import Claim
from ..mutation import Mutation

MODULUS = 43


def sums(seed: int) -> Sample:
    """The table of a + b modulo 43, both summands one-hot; three quarters of it for training."""
    a, b = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS)).T
    one_hot = torch.eye(MODULUS)
    x, y = torch.cat([one_hot[a], one_hot[b]], 1), (a + b) % MODULUS
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, test = order[: len(y) * 3 // 4], order[len(y) * 3 // 4 :]
    return Sample(x[train], y[train], y[train], x[test], y[test], MODULUS)


def learned(seed: int, sample: Sample, *methods: Method) -> dict[str, float]:
    """Quality on the held-out sums after 300 steps on the whole training table."""
    model = mlp(seed, 2 * MODULUS, 128, MODULUS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    fit(model, sample, *methods, seed=seed, epochs=300, lr=3e-2, batch=len(sample.x), optimizer=optimizer)
    return quality(model, sample)


def run(seed: int) -> dict[str, dict[str, float]]:
    """Both arms of one seed."""
    sample = sums(seed)
    return {"with": learned(seed, sample, PerpGrad()), "without": learned(seed, sample)}


CLAIM = Claim(
    paper="stablemax-perpgrad",
    statement="Without weight decay a net that has fitted modular addition by cross-entropy knows nothing of held-out "
    "sums; descending orthogonally to the weights it generalises to them.",
    arena="a + b modulo 43, 75 % of the table for training, one-hot; MLP 86-128-43, AdamW (0.9, 0.98) 3e-2 without "
    "weight decay, whole batch, 300 steps",
    quantity="accuracy",
    margin=30.0,  # a third of the effect on other seeds
    run=run,
    mutation=Mutation(
        "gradient not projected",
        "wellposed.objectives.perp_grad:orthogonal_parts",
        lambda original: lambda grads, *args: list(grads),
    ),
)
