"""ConR, Keramati, Meng, Evans 2023."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core import Method, Recipe
from ...objectives.conr import ConR
from ...tasks import Regress
from ..arenas import mlp
from ..claim import Claim
from ..mutation import Mutation, zero

FEATURES = "4"  # the last hidden layer


def skewed(seed: int, rows: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Inputs (N, 10), noisy waves of the label, and labels (N,) in [0, 10], ``ratio`` times denser at 0 than at 10."""
    g = torch.Generator().manual_seed(seed)
    frequency, phase = 3 * torch.randn(10, generator=g), 2 * math.pi * torch.rand(10, generator=g)
    g.manual_seed(seed + (1_000_000 if ratio == 1 else 0))
    u = torch.rand(rows, generator=g)
    y = -torch.log1p(-u * (1 - 1 / ratio)) / math.log(ratio) if ratio > 1 else u
    return torch.sin(y[:, None] * frequency + phase) + torch.randn(rows, 10, generator=g), 10 * y


def ranks(values: Tensor) -> Tensor:
    """Ranks, centred."""
    found = values.argsort().argsort().double()
    return found - found.mean()


def trained(seed: int, *methods: Method) -> dict[str, float]:
    """Rank correlation of label and feature distances, and errors, on evenly spread test labels."""
    x, y = skewed(seed, 600, 50.0)
    model = mlp(seed, 10, 64, 64, 1)
    recipe = Recipe(*methods, seed=seed).attach(model, Regress("absolute"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    g = torch.Generator().manual_seed(seed)
    for _ in range(60):
        for rows in torch.randperm(600, generator=g)[:576].view(9, 64):
            recipe.step({"x": x[rows], "y": y[rows]}, optimizer)
    recipe.detach()
    x, y = skewed(seed, 500, 1.0)
    with torch.no_grad():
        h, error = model[: int(FEATURES) + 1](x), (model(x)[:, 0] - y).abs()
    above = torch.ones(500, 500, dtype=torch.bool).triu(1)
    one, two = ranks(1 - F.cosine_similarity(h[:, None], h, dim=-1)[above]), ranks((y[:, None] - y).abs()[above])
    return {
        "rank correlation": float((one * two).sum() / (one.norm() * two.norm())),
        "mean absolute error": float(error.mean()),
        "of the rarest fifth": float(error[y > 8].mean()),
    }


CLAIM = Claim(
    paper="conr",
    statement="Where labels are skewed, ConR orders features as labels are ordered: the distances of two test samples "
    "in both (cosine of features, label gap) agree better, by rank correlation, than with the regression loss alone.",
    arena="regression from 10 noisy waves of the label, 600 training labels in 0 to 10, 50 times denser at 0 than at "
    "10; MLP 10-64-64-1, absolute error, AdamW 1e-3, batch 64, 60 epochs; last hidden layer, window 1, tau 0.07, "
    "push 0.2, strength 0.2",
    quantity="rank correlation",
    margin=0.015,  # a quarter of the effect on other seeds
    run=lambda seed: {
        "with": trained(seed, ConR(layer=FEATURES, window=1.0, strength=0.2)),
        "without": trained(seed),
    },
    mutation=Mutation("strength 0", "wellposed.objectives.conr:conr_loss", zero),
)
