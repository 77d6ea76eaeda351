"""PolyLoss, Leng et al. 2022."""

import torch
import torch.nn.functional as F
from torch import nn

from ...core import Recipe
from ...objectives.poly_loss import PolyLoss, poly_terms
from ...tasks import Classify
from ..claim import Claim
from ..mutation import Mutation, negated


def run(seed: int) -> dict[str, dict[str, float]]:
    """Gradients of a linear classifier through a recipe, and the truncated series, in float64."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(64, 6, generator=g, dtype=torch.float64), torch.randint(4, (64,), generator=g)
    model = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    nn.init.normal_(model.weight, generator=g)
    p = F.softmax(model(x), -1).detach()
    p_true = p[torch.arange(64), y]
    errors = {}
    for epsilon in (-1.0, 1.0, 2.0):
        recipe = Recipe(PolyLoss(strength=epsilon)).attach(model, Classify(classes=4))
        (found,) = torch.autograd.grad(recipe.objective(model, {"x": x, "y": y}), model.weight)
        expected = ((1 + epsilon * p_true)[:, None] * (p - F.one_hot(y, 4))).T @ x / 64
        errors[f"gradient, epsilon {epsilon:g}"] = float((found - expected).abs().max())
        recipe.detach()
    logits = torch.randn(64, 4, generator=g, dtype=torch.float64)
    likely = F.softmax(logits, -1).gather(1, y[:, None])[:, 0] >= 0.05  # where 500 terms leave less than 3e-13
    series = poly_terms(logits, y, [1 / j for j in range(1, 501)])
    errors["500 terms of the series"] = float(
        (series - F.cross_entropy(logits, y, reduction="none"))[likely].abs().max()
    )
    return {"errors": errors}


CLAIM = Claim(
    paper="poly-loss",
    statement="The cross-entropy is the power series sum_j (1 - p)^j / j, and changing its first coefficient by "
    "epsilon multiplies every example's gradient by exactly 1 + epsilon p.",
    arena="closed form; linear classifiers with random weights, float64",
    quantity="absolute error",
    kind="exact",
    tolerance=1e-12,
    run=run,
    mutation=Mutation(
        words="the sign of the added term turned round",
        target="wellposed.objectives.poly_loss:PolyLoss.penalty",
        by=negated,
    ),
)
