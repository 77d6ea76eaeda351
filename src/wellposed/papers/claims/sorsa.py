"""SORSA, Cao 2024."""

import torch
from torch import nn

from ...adaptation.sorsa import SORSA, SingularAdapter
from ...core import Recipe
from ...tasks import Classify
from ...workbench.metrics import accuracy
from ..arenas import CLEAN_DIGITS, digits
from ..claim import Claim
from ..mutation import Mutation, zero

STEPS, ROWS, RANK = 60, 300, 8


def condition(adapter: SingularAdapter) -> float:
    """Mean condition number of the two factors."""
    return sum(float(torch.linalg.cond(f.detach())) for f in (adapter.left, adapter.right)) / 2


def run(seed: int) -> dict[str, dict[str, float]]:
    """Fine-tune a net trained on upright digits on digits turned by 90 degrees, with and without the regulariser."""
    sample = digits(seed, 600)
    turned = [torch.rot90(x.view(-1, 8, 8), 1, (1, 2)).flatten(1) for x in (sample.x, sample.x_test)]
    found = {}
    for arm, strength in (("with", 0.1), ("without", 0.0)):
        model = CLEAN_DIGITS.train(seed, sample)
        recipe = Recipe(SORSA(rank=RANK, strength=strength), seed=seed).attach(model, Classify(classes=10), steps=STEPS)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
        g = torch.Generator().manual_seed(seed)
        for _ in range(STEPS):
            rows = torch.randint(ROWS, (32,), generator=g)
            recipe.step({"x": turned[0][rows], "y": sample.y[rows]}, optimizer)
        adapters = [m for m in model.modules() if isinstance(m, SingularAdapter)]
        conditions = [condition(a) for a in adapters]
        found[arm] = {
            "condition number": sum(conditions) / len(conditions),
            "accuracy": score(recipe.finish(), turned[1], sample.y_test),
        }
    return found


@torch.no_grad()
def score(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy in points."""
    return accuracy(model.eval()(x), y)


CLAIM = Claim(
    paper="sorsa",
    statement="While leading singular triples of trained weights are fine-tuned, the penalty keeps their vectors "
    "better conditioned than they are without it.",
    arena=f"MLP 64-128-128-10 trained on 600 digits, then rank {RANK} on {ROWS} of them turned by 90 degrees, AdamW "
    f"5e-3, {STEPS} steps of 32, strength 0.1",
    quantity="condition number",
    direction="lower",
    margin=0.2,  # a third of the 0.69 seen on other seeds
    run=run,
    mutation=Mutation("the penalty is zero", "wellposed.adaptation.sorsa:orthonormality", zero),
)
