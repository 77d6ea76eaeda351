"""Signed supermasks, Koster, Grothe, Rettinger 2022."""

from ...core import Method
from ...sparsity.signed_supermask import SignedSupermask
from ..arenas import digits, fit, mlp, quality
from ..claim import Claim
from ..mutation import Mutation

HANDICAP = 3.0  # points


def trained(seed: int, lr: float, *methods: Method) -> dict[str, float]:
    """Quality of a net of this seed."""
    sample, model = digits(seed, 1200), mlp(seed, 64, 128, 64, 10)
    return quality(fit(model, sample, *methods, seed=seed, epochs=30, lr=lr), sample)


def run(seed: int) -> dict[str, dict[str, float]]:
    """Supermask against the dense net, whose accuracy is lowered by the handicap."""
    dense = trained(seed, 1e-3)
    dense["accuracy, dense less 3 points"] = dense["accuracy"] - HANDICAP
    masked = trained(seed, 5e-3, SignedSupermask(density=0.2, seed=seed))
    return {"with": masked | {"accuracy, dense less 3 points": masked["accuracy"]}, "without": dense}


CLAIM = Claim(
    paper="signed-supermask",
    statement="A net whose weights are never trained, only kept, hidden (80 %) or inverted, comes within 3 points of "
    "the test accuracy of the net trained densely.",
    arena="digits, 1200 training scans; MLP 64-128-64-10, AdamW, 5e-3 on scores, 1e-3 on dense weights, batch 32, 30 "
    "epochs; biases are trained; the dense accuracy has 3 points taken off",
    quantity="accuracy, dense less 3 points",
    margin=1.0,
    run=run,
    mutation=Mutation(
        "the scores are not trained",
        "wellposed.sparsity.signed_supermask:Supermask.forward",
        lambda original: lambda self, scores: original(self, scores.detach()) + 0 * scores,
    ),
)
