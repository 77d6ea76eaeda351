"""Squentropy, Hui, Belkin, Wright 2023."""

from ...objectives.squentropy import Squentropy
from ..arenas import MIXTURE, quality
from ..claim import Claim
from ..mutation import Mutation, zero

CLAIM = Claim(
    paper="squentropy",
    statement="Adding the mean square of the wrong classes' logits to the cross-entropy calibrates better on "
    "overlapping classes than the cross-entropy alone: a lower test ECE.",
    arena=MIXTURE.words,
    quantity="ece",
    direction="lower",
    margin=1.7,  # a quarter of the -6.8 seen on other seeds
    run=lambda seed: MIXTURE.pair(seed, Squentropy(), quality),
    mutation=Mutation(
        words="the penalty times 0",
        target="wellposed.objectives.squentropy:squentropy_penalty",
        by=zero,
    ),
)
