"""Lower bounds on mutual information, from a critic's scores.

``joint`` are scores (n,) of pairs that belong together, ``marginal`` scores of any shape of pairs that do not. With the
optimal critic, the logarithm of p(x, y) / p(x) p(y), Donsker-Varadhan and NWJ (there plus 1) give the information.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def log_mean_exp(scores: Tensor) -> Tensor:
    """Logarithm of the mean of exponentials, over all entries."""
    return scores.flatten().logsumexp(0) - math.log(scores.numel())


def donsker_varadhan(joint: Tensor, marginal: Tensor) -> Tensor:
    """E T - log E e^T: the tightest for a given critic, but a batch's logarithm is biased upwards.

    Donsker, Varadhan 1983; as an estimate: Belghazi et al. 2018, arXiv 1801.04062, Eq. 5.
    """
    return joint.mean() - log_mean_exp(marginal)


def nwj(joint: Tensor, marginal: Tensor) -> Tensor:
    """E T - E e^(T - 1), whose batch means are unbiased.

    Nguyen, Wainwright, Jordan 2010, Estimating Divergence Functionals and the Likelihood Ratio, arXiv 0809.0853.
    """
    return joint.mean() - (log_mean_exp(marginal) - 1).exp()


def info_nce(matrix: Tensor) -> Tensor:
    """How well each row's partner is told from the others, plus log n: never above log n.

    Args:
        matrix: T(x_i, y_j), (n, n).

    Van den Oord, Li, Vinyals 2018, Representation Learning with Contrastive Predictive Coding, arXiv 1807.03748.
    """
    return (matrix.diagonal() - matrix.logsumexp(1)).mean() + math.log(len(matrix))


def jensen_shannon(joint: Tensor, marginal: Tensor) -> Tensor:
    """-E softplus(-T) - E softplus(T): twice the Jensen-Shannon divergence less 2 log 2, at the optimal critic.

    A bound on another divergence than mutual information, with the same optimal critic and gradients of low variance.
    """
    return -F.softplus(-joint).mean() - F.softplus(marginal).mean()
