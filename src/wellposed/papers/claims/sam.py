"""Sharpness-aware minimisation, Foret et al. 2021."""

from ...smoothness.sam import SAM
from ..arenas import NOISY_DIGITS, curvature
from ..claim import Claim
from ..mutation import Mutation, fixed

CLAIM = Claim(
    paper="sam",
    statement="With 40 % wrong labels, sharpness-aware minimisation ends training with a higher test accuracy than "
    "plain training.",
    arena=NOISY_DIGITS.words + "; last epoch; rho 0.5",
    quantity="accuracy",
    margin=4.75,  # a quarter of the +19.0 seen on other seeds
    run=lambda seed: NOISY_DIGITS.pair(seed, SAM(rho=0.5), curvature),
    mutation=Mutation(
        words="a ball of radius 0",
        target="wellposed.smoothness.sam:SAM",
        by=fixed(rho=0.0),
    ),
)
