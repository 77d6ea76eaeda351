"""Trained rank pruning, Xu et al. 2018."""

import torch
from torch import nn

from ...core import Method
from ...quantization.trained_rank_pruning import TrainedRankPruning, factorize
from ..arenas import digits, fit, mlp, quality
from ..claim import Claim
from ..mutation import Mutation, fixed


def weights_of(model: nn.Module) -> int:
    """Multiplications for one sample."""
    return sum(p.numel() for p in model.parameters() if p.ndim == 2)


def trained(seed: int, *methods: Method) -> dict[str, float]:
    """The factorised net: its share of multiplications (%), its quality, and the accuracy before."""
    sample, model = digits(seed, 1200), mlp(seed, 64, 128, 128, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fit(model, sample, *methods, seed=seed, epochs=20, lr=0.1, optimizer=optimizer)
    dense, before = weights_of(model), quality(model, sample)["accuracy"]
    factorize(model, energy=0.02, layers=("1", "3"))
    share = 100 * weights_of(model) / dense
    return quality(model, sample) | {"multiplications": share, "accuracy before": before}


CLAIM = Claim(
    paper="trained-rank-pruning",
    statement="Cut to 98 % of the energy of its weight matrices, a net trained with truncated singular values needs "
    "fewer multiplications than one trained plainly.",
    arena="digits, 1200 training scans; MLP 64-128-128-10, SGD 0.1, momentum 0.9, batch 32, 20 epochs; hidden layers "
    "factorised where that saves work; multiplications in % of the dense net",
    quantity="multiplications",
    direction="lower",
    margin=25.0,
    run=lambda seed: {"with": trained(seed, TrainedRankPruning()), "without": trained(seed)},
    mutation=Mutation(
        "nothing truncated, no nuclear norm",
        "wellposed.quantization.trained_rank_pruning:TrainedRankPruning",
        fixed(energy=0.0, nuclear=0.0),
    ),
)
