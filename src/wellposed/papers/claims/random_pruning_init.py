"""Random pruning at initialisation, Liu et al. 2022."""

from ...core import Method
from ...sparsity.random_pruning import RandomPruning
from ..arenas import Sample, digits, fit, mlp, quality
from ..claim import Claim, Curve
from ..mutation import Mutation, fixed

WIDTHS = (16, 32, 64, 128, 256)


def accuracy(seed: int, sample: Sample, width: int, *methods: Method) -> float:
    """Test accuracy of a net of this width (points)."""
    model = mlp(seed, 64, width, width, 10)
    return quality(fit(model, sample, *methods, seed=seed, epochs=30, lr=1e-3), sample)["accuracy"]


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """Accuracy of dense and of randomly pruned nets, by width."""
    sample = digits(seed, 600)
    dense = [accuracy(seed, sample, width) for width in WIDTHS]
    sparse = [accuracy(seed, sample, width, RandomPruning(density=0.1, seed=seed)) for width in WIDTHS]
    return {"curve": {"width": list(map(float, WIDTHS)), "dense": dense, "pruned": sparse}}


def closing(curve: Curve) -> float:
    """By how much the gap between dense and pruned shrinks from the narrowest net to the widest."""
    gaps = [a - b for a, b in zip(curve["dense"], curve["pruned"], strict=True)]
    return gaps[0] - gaps[-1]


CLAIM = Claim(
    paper="random-pruning-init",
    kind="curve",
    statement="The accuracy that a random mask at initialisation costs, against the dense net of equal width, shrinks "
    "as the net gets wider.",
    arena="digits, 600 training scans; MLP 64-h-h-10 with h from 16 to 256, AdamW 1e-3, batch 32, 30 epochs; density "
    "0.1 by ERK",
    quantity="gap in accuracy at width 16 less that at width 256 (points)",
    margin=15.0,
    gain=closing,
    run=run,
    mutation=Mutation("nothing pruned", "wellposed.sparsity.random_pruning:RandomPruning", fixed(density=1.0)),
)
