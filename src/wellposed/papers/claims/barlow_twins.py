"""Barlow Twins, Zbontar et al. 2021."""

from functools import partial

from ...selfsup.barlow_twins import barlow_twins
from ..claim import Claim
from ..mutation import Mutation, fixed
from ..self_supervision import WORDS, arms

CLAIM = Claim(
    paper="barlow-twins",
    statement="Views that agree in standardised units still share few dimensions; with the units decorrelated as well, "
    "the encoder's features carry more: a linear probe with few labels is more accurate.",
    arena=WORDS + "; redundancy 0.02 against 0",
    quantity="probe accuracy",
    margin=1.5,  # a quarter of the +5.7 seen on other seeds
    run=lambda seed: arms(seed, partial(barlow_twins, redundancy=0.02), without=partial(barlow_twins, redundancy=0.0)),
    mutation=Mutation("redundancy 0", "wellposed.selfsup.barlow_twins:barlow_twins", fixed(redundancy=0.0)),
)
