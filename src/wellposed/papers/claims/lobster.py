"""LOBSTER, Tartaglione et al. 2020."""

import torch
import torch.nn.functional as F

from ...core import Recipe
from ...sparsity.lobster import LOBSTER
from ...tasks import Classify
from ..arenas import digits, mlp, quality
from ..claim import Claim
from ..mutation import Mutation, fixed

ROUNDS, ROWS = 8, 960


def trained(seed: int, method: LOBSTER) -> dict[str, float]:
    """Sparsity after rounds of pruning by validation loss, and quality."""
    sample, model = digits(seed, 1200), mlp(seed, 64, 300, 100, 10)
    recipe = Recipe(method, seed=seed).attach(model, Classify(classes=10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def validate() -> float:
        return float(F.cross_entropy(model(sample.x[ROWS:]), sample.y[ROWS:]))

    def learn(epochs: int) -> None:
        for _ in range(epochs):
            for i in torch.split(torch.randperm(ROWS, generator=order), 32):
                recipe.step({"x": sample.x[i], "y": sample.y[i]}, optimizer)

    learn(20)
    share = 0.0
    for _ in range(ROUNDS):
        share = method.prune(validate)
        learn(2)
    return quality(recipe.finish().eval(), sample) | {"sparsity": 100 * share}


CLAIM = Claim(
    paper="lobster",
    statement="Pruned in rounds until the validation loss rises by 5 %, a net whose decay spares the weights that the "
    "loss feels becomes sparser than one with plain decay of the same strength.",
    arena="digits, 960 training and 240 validation scans; MLP 64-300-100-10, SGD 0.1, batch 32, 20 epochs, then 8 "
    "rounds of pruning and 2 epochs; decay 1e-3, sensitivity of the summed loss",
    quantity="sparsity",
    margin=1.0,  # points
    run=lambda seed: {
        "with": trained(seed, LOBSTER(strength=1e-3, scale=32.0)),
        "without": trained(seed, LOBSTER(strength=1e-3, scale=0.0)),
    },
    mutation=Mutation("every weight decays in full", "wellposed.sparsity.lobster:LOBSTER", fixed(scale=0.0)),
)
