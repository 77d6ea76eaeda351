"""Divergences between discrete laws and between Gaussians, all in nats.

Discrete laws are probabilities (..., K), or logits where a function says so; Gaussians have means (..., d) and
covariances (..., d, d). Leading dimensions broadcast. The Shannon entropy of a discrete law is ``entropy``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from .spectra import entropy as entropy

Name = Literal["kl", "reverse-kl", "js", "chi2", "hellinger", "tv"]
Generator = Callable[[Tensor], Tensor]


# ---- discrete laws
def f_divergence(p: Tensor, q: Tensor, f: Name | Generator, slope: float = math.inf) -> Tensor:
    """sum_k q_k f(p_k / q_k), and slope times the mass of p where q is 0.

    Args:
        p, q: probabilities (..., K).
        f: convex with f(1) = 0, or a name: ``"kl"`` KL(p, q); ``"reverse-kl"`` KL(q, p); ``"js"`` the mean of the KL
            divergences of p and q from their mean, at most log 2; ``"chi2"`` Pearson's; ``"hellinger"`` half the
            squared distance of square roots; ``"tv"`` half the absolute differences; the two latter at most 1.
        slope: limit of f(t) / t at infinity, for a function f; names know theirs.

    Returns:
        shape (...). Gradients are finite where p is 0.

    Raises:
        ValueError: for an unknown name.
    """
    if not callable(f):
        if f not in _NAMED:
            raise ValueError(f"f_divergence: f must be a function or one of {', '.join(get_args(Name))}, got {f!r}")
        return _NAMED[f](p, q).sum(-1)
    inside = q != 0
    ratio = p / q.where(inside, 1)
    apart = p.where(~inside, 0).sum(-1)
    beside = slope * apart.where(apart != 0, 1)  # an infinite slope times 0 would be NaN in the gradient
    return (q * f(ratio)).where(inside, 0).sum(-1) + beside.where(apart != 0, 0)


# Terms by p and q themselves: in float32 the ratio of two probabilities may be more than the largest number.
def _relative(p: Tensor, q: Tensor) -> Tensor:
    """p log(p / q)."""
    return (p * (_log(p) - q.where(q != 0, 1).log())).where((q != 0) | ~(p > 0), math.inf)


def _js(p: Tensor, q: Tensor) -> Tensor:
    log_mean = _log((p + q) / 2)
    return (p * (_log(p) - log_mean) + q * (_log(q) - log_mean)) / 2


def _chi2(p: Tensor, q: Tensor) -> Tensor:
    inside = q != 0
    return ((p - q).square() / q.where(inside, 1)).where(inside | ~(p > 0), math.inf)


def _hellinger(p: Tensor, q: Tensor) -> Tensor:
    one, other = (law.where(law != 0, 1).sqrt().where(law != 0, 0) for law in (p, q))  # slope 0 in place of infinity
    return (one - other).square() / 2


def _log(t: Tensor) -> Tensor:
    """Logarithm with a finite slope at 0, for products t log t."""
    return t.clamp_min(torch.finfo(t.dtype).tiny).log()


_NAMED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": _relative,
    "reverse-kl": lambda p, q: _relative(q, p),
    "js": _js,
    "chi2": _chi2,
    "hellinger": _hellinger,
    "tv": lambda p, q: (p - q).abs() / 2,
}


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of probabilities (..., K); infinite where p has mass and q none."""
    return f_divergence(p, q, "kl")


def js(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of probabilities (..., K), 0 to log 2."""
    return f_divergence(p, q, "js")


def renyi(p: Tensor, q: Tensor, order: float) -> Tensor:
    """Renyi divergence log(sum p^order q^(1 - order)) / (order - 1) of probabilities (..., K); order 1 is KL.

    Raises:
        ValueError: for an order of 0 or less.
    """
    if not order > 0:
        raise ValueError(f"renyi: order must be above 0, got {order:g}")
    if order == 1:
        return kl(p, q)
    both = (p != 0) & (q != 0)
    power = order * p.where(both, 1).log() + (1 - order) * q.where(both, 1).log()
    found = power.where(both, -math.inf).logsumexp(-1) / (order - 1)
    return found.where(~((p > 0) & ~both).any(-1), math.inf) if order > 1 else found


def cauchy_schwarz(p: Tensor, q: Tensor) -> Tensor:
    """-log of the squared cosine of two laws (..., K): 0 where they are equal, infinite where they share no mass."""
    return p.square().sum(-1).log() + q.square().sum(-1).log() - 2 * (p * q).sum(-1).log()


def kl_of_logits(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of the softmax of p from that of q, logits (..., K): finite however small the probabilities."""
    log_p = p.log_softmax(-1)
    return (log_p.exp() * (log_p - q.log_softmax(-1))).sum(-1)


def js_of_logits(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the softmax of p and of q, logits (..., K)."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    mean = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((log_p.exp() * (log_p - mean)).sum(-1) + (log_q.exp() * (log_q - mean)).sum(-1)) / 2


# ---- Gaussians
def gaussian_entropy(cov: Tensor) -> Tensor:
    """Differential entropy of a Gaussian, (..., d, d) -> (...)."""
    return (_log_det(cov) + cov.shape[-1] * math.log(2 * math.pi * math.e)) / 2


def gaussian_kl(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> Tensor:
    """KL divergence of N(mean_p, cov_p) from N(mean_q, cov_q), shape (...)."""
    trace = torch.linalg.solve(cov_q, cov_p).diagonal(dim1=-2, dim2=-1).sum(-1)
    distance = _mahalanobis(mean_p - mean_q, cov_q)
    return (trace + distance - mean_p.shape[-1] + _log_det(cov_q) - _log_det(cov_p)) / 2


def gaussian_renyi(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor, order: float) -> Tensor:
    """Renyi divergence of two Gaussians, shape (...); infinite where order cov_q + (1 - order) cov_p is not positive.

    Raises:
        ValueError: for an order of 0 or less.
    """
    if not order > 0:
        raise ValueError(f"gaussian_renyi: order must be above 0, got {order:g}")
    if order == 1:
        return gaussian_kl(mean_p, cov_p, mean_q, cov_q)
    mixed = order * cov_q + (1 - order) * cov_p
    finite = torch.linalg.cholesky_ex(mixed).info == 0
    mixed = mixed.where(finite[..., None, None], torch.eye(mixed.shape[-1]).to(mixed))
    logs = _log_det(mixed) - (1 - order) * _log_det(cov_p) - order * _log_det(cov_q)
    found = order / 2 * _mahalanobis(mean_p - mean_q, mixed) - logs / (2 * (order - 1))
    return found.where(finite, math.inf)


def gaussian_overlap(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> Tensor:
    """Logarithm of the integral of the product of two Gaussian densities, shape (...)."""
    cov = cov_p + cov_q
    constant = mean_p.shape[-1] * math.log(2 * math.pi)
    return -(constant + _log_det(cov) + _mahalanobis(mean_p - mean_q, cov)) / 2


def gaussian_cauchy_schwarz(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> Tensor:
    """Cauchy-Schwarz divergence of two Gaussians, shape (...)."""
    own = gaussian_overlap(mean_p, cov_p, mean_p, cov_p) + gaussian_overlap(mean_q, cov_q, mean_q, cov_q)
    return own - 2 * gaussian_overlap(mean_p, cov_p, mean_q, cov_q)


def _log_det(cov: Tensor) -> Tensor:
    return 2 * torch.linalg.cholesky(cov).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _mahalanobis(difference: Tensor, cov: Tensor) -> Tensor:
    return (difference * torch.linalg.solve(cov, difference.unsqueeze(-1)).squeeze(-1)).sum(-1)
