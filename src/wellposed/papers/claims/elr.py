"""Early-learning regularization, Liu et al. 2020."""

from ...objectives.elr import ELR
from ..arenas import NOISY_DIGITS, quality
from ..claim import Claim
from ..mutation import Mutation, negated

CLAIM = Claim(
    paper="elr",
    statement="With 40 % wrong labels, early-learning regularization ends training with a higher test accuracy than "
    "plain training, because it does not memorise the wrong labels.",
    arena=NOISY_DIGITS.words + "; last epoch; strength 3, beta 0.7",
    quantity="accuracy",
    margin=6.0,  # a quarter of the +25.0 seen on other seeds
    run=lambda seed: NOISY_DIGITS.pair(seed, ELR(rows=600, classes=10), quality),
    mutation=Mutation(
        words="the sign of the penalty turned round",
        target="wellposed.objectives.elr:ELR.penalty",
        by=negated,
    ),
)
