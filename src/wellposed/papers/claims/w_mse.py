"""Whitening for self-supervision, Ermolov et al. 2020."""

from ...selfsup.w_mse import w_mse
from ..claim import Claim
from ..mutation import Mutation, nothing
from ..self_supervision import WORDS, agreement, arms

CLAIM = Claim(
    paper="w-mse",
    statement="Agreement of two views alone collapses the encoder; after whitening the embeddings it does not, without "
    "any negative pair: a linear probe with few labels is more accurate.",
    arena=WORDS + "; slices of 64, against the same distance without whitening",
    quantity="probe accuracy",
    margin=10.0,  # a quarter of the +41 seen on other seeds
    run=lambda seed: arms(seed, w_mse, without=agreement),
    mutation=Mutation("embeddings left as they are", "wellposed.selfsup.w_mse:whiten", nothing),
)
