"""Tasks: what is learned. Each is a forward with named outputs and a loss with one value per sample."""

from .adversarial import Discriminate, Generate, discriminator_loss, generator_loss
from .autoencode import Autoencode, Autoencoder, normal_kl
from .classify import Classify
from .denoise import Denoise
from .likelihood import Likelihood
from .masked import MaskedModel
from .next_token import NextToken
from .noise_levels import cosine_betas, linear_betas
from .policy import Policy, answer_entropy, group_advantages
from .prefer import Prefer, dpo_loss, sequence_log_probs, token_log_probs
from .regress import Regress
from .residual import Residual, laplacian
from .two_views import TwoViews, nt_xent

__all__ = [
    "Autoencode",
    "Autoencoder",
    "Classify",
    "Denoise",
    "Discriminate",
    "Generate",
    "Likelihood",
    "MaskedModel",
    "NextToken",
    "Policy",
    "Prefer",
    "Regress",
    "Residual",
    "TwoViews",
    "answer_entropy",
    "cosine_betas",
    "discriminator_loss",
    "dpo_loss",
    "generator_loss",
    "group_advantages",
    "laplacian",
    "linear_betas",
    "normal_kl",
    "nt_xent",
    "sequence_log_probs",
    "token_log_probs",
]
