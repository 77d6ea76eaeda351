"""Von Neumann entropy regularisation, Kim et al. 2023."""

from ...selfsup.vne import VNE
from ...tasks import nt_xent
from ..claim import Claim
from ..mutation import Mutation, negated
from ..self_supervision import WORDS, arms

CLAIM = Claim(
    paper="vne",
    statement="A contrastively trained encoder uses more dimensions of its features when their von Neumann entropy is "
    "raised beside the loss: a higher effective rank on test data than without.",
    arena=WORDS + "; NT-Xent, temperature 0.5; VNE of the encoder's output, strength 0.1",
    quantity="effective rank of features",
    margin=2.9,  # a quarter of the +11.6 seen on other seeds
    run=lambda seed: arms(seed, nt_xent, VNE(layer="encoder", strength=0.1)),
    mutation=Mutation("the sign of the entropy turned round", "wellposed.selfsup.vne:representation_entropy", negated),
)
