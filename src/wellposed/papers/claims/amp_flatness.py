"""Adversarial model perturbation, Zheng, Zhang, Mao 2021."""

from ...smoothness.amp import AMP
from ..arenas import FEW_NOISY_DIGITS, curvature
from ..claim import Claim
from ..mutation import Mutation, fixed

CLAIM = Claim(
    paper="amp-flatness",
    statement="Minimising the worst loss in a small ball around the weights finds flatter minima than plain training, "
    "and with 20 % wrong labels a higher test accuracy.",
    arena=FEW_NOISY_DIGITS.words + "; epsilon 0.2 for each tensor",
    quantity="accuracy",
    margin=1.45,  # a quarter of the +5.8 seen on other seeds
    run=lambda seed: FEW_NOISY_DIGITS.pair(seed, AMP(epsilon=0.2), curvature),
    mutation=Mutation(
        words="a ball of radius 0",
        target="wellposed.smoothness.amp:AMP",
        by=fixed(epsilon=0.0),
    ),
)
