"""Exponential smoothing of inverse propensities: learning from logged decisions, and a certificate for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..core import implements
from ..core.modes import evaluating
from ..core.task import Batch, Outputs, Task
from ..tasks.classify import logits_of

__all__ = [
    "GaussianArgmax", "OffPolicyBound", "SmoothedIPS", "argmax_probabilities", "off_policy_bound", "smoothed_moments",
    "smoothed_weights",
]  # fmt: skip


def smoothed_weights(policy: Tensor, propensity: Tensor, alpha: float = 0.7, clip: float | None = None) -> Tensor:
    """Importance weights pi / pi_0^alpha, or what ``clip`` leaves of them: elementwise, differentiable in ``policy``.

    Args:
        policy: probabilities under the policy of interest.
        propensity: probabilities under the policy that logged, above 0; the same shape.
        alpha: in [0, 1]; 1 is inverse propensity scoring.
        clip: the largest weight there is, above 0 (its gradient is 0); None: any.

    Raises:
        ValueError: for a number out of its range.
    """
    _check(alpha, clip)
    weights = policy / propensity**alpha
    return weights if clip is None else weights.clamp(max=clip)


def smoothed_moments(
    policy: Tensor, logging: Tensor, cost: Tensor, alpha: float = 0.7, clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """Bias of the estimate, and variance of one of its terms, where all costs are known: over a population of contexts.

    A term is pi(a|x) / pi_0(a|x)^alpha c(x, a) with x uniform over the rows and a from the logging policy; the estimate
    from n of them has mean squared error bias^2 + variance / n.

    Args:
        policy, logging: probabilities (N, K).
        cost: (N, K).
        alpha, clip: as of ``smoothed_weights``.

    Returns:
        two scalars.
    """
    terms = smoothed_weights(policy, logging, alpha, clip) * cost
    mean = (logging * terms).sum(-1).mean()
    square = (logging * terms.square()).sum(-1).mean()
    return mean - (policy * cost).sum(-1).mean(), square - mean.square()


@implements("exponential-smoothing-ips")
class SmoothedIPS(Task):
    r"""Learn a policy from logged decisions, with propensities smoothed by a power.

    Computes:
        The importance-weighted cost of each logged decision, pi(a|x) / pi_0(a|x)^alpha times its cost; their mean
        estimates the expected cost of the policy and is what training lowers. alpha below 1 tames the weights of
        decisions the logging policy rarely took, without a kink. Any model of logits over actions will do.

    Formula:
        \hat R^\alpha(\pi) = \frac{1}{n} \sum_{i=1}^n \frac{\pi(a_i | x_i)}{\pi_0(a_i | x_i)^\alpha} c_i
        \mathrm{E} \hat R^\alpha(\pi) = \mathrm{E}_x \sum_a \pi(a | x) \, \pi_0(a | x)^{1 - \alpha} c(x, a)

    Helps:
        Sharp logging policies, whose inverse propensities have a variance that swamps the estimate: on digits the mean
        squared error was 3 to 50 times lower (alpha 0.7, softmax of 3 times the logging model's scores).

    Avoid:
        Near-uniform logging over K actions: all estimates are then K^(alpha - 1) too small, and alpha 1 is better.
        With 300 rows no alpha had a lower error than weights clipped at 10, at any sharpness. Costs above 0 make a
        policy flee from what was logged: shift them to [-1, 0]. Guessed propensities.

    Defaults:
        alpha 0.7, near 1 - n^(-1/4) for the 300 rows of the claim, as the authors' programs set it for n rows. The
        bound needs it to be chosen before the data are seen.

    Cost:
        One pass.

    Reference:
        Aouali, Brunel, Rohde, Korba 2023, Exponential Smoothing for Off-Policy Learning, arXiv 2305.15877, section 3;
        their PAC-Bayes bound is ``off_policy_bound``.

    Args:
        alpha: power of the propensities, in [0, 1].
        clip: the largest weight, above 0; None: any. SmoothedIPS(alpha=1, clip=10) is clipped inverse propensities.

    Batch:
        ``x``, ``action`` ids (B,), ``cost`` (B,) in [-1, 0] (a reward turned round), ``propensity`` (B,), above 0.
    """

    reads = ("x", "action", "cost", "propensity")
    yields = ("logits",)

    def __init__(self, alpha: float = 0.7, *, clip: float | None = None) -> None:
        _check(alpha, clip)
        self.alpha, self.clip = alpha, clip

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        return {"logits": logits_of(model(batch["x"]))}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        logits = out["logits"]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        taken = wide.softmax(-1).gather(-1, batch["action"][:, None]).squeeze(-1)
        _check_rows(taken, cost=batch["cost"], propensity=batch["propensity"])
        return smoothed_weights(taken, batch["propensity"], self.alpha, self.clip) * batch["cost"]

    def __repr__(self) -> str:
        return f"SmoothedIPS(alpha={self.alpha:g}{'' if self.clip is None else f', clip={self.clip:g}'})"


@dataclass(frozen=True)
class OffPolicyBound:
    """A certificate; every part is a scalar tensor with its gradient.

    Attributes:
        estimate: the smoothed estimate of the risk.
        bias: what smoothing can have hidden.
        complexity: the terms of the KL divergence.
        spread: the term of the second moments.
    """

    estimate: Tensor
    bias: Tensor
    complexity: Tensor
    spread: Tensor

    @property
    def width(self) -> Tensor:
        """The true risk is within this of the estimate, on both sides, with the probability asked for."""
        return self.bias + self.complexity + self.spread

    @property
    def risk(self) -> Tensor:
        """Upper bound of the true risk: minimise it to learn a policy with a guarantee. Below 0 it says something."""
        return self.estimate + self.width


def off_policy_bound(
    policy: Tensor,
    logging: Tensor,
    action: Tensor,
    cost: Tensor,
    kl: Tensor | float,
    *,
    alpha: float = 0.7,
    scale: float | None = None,
    delta: float = 0.05,
    rows: int | None = None,
) -> OffPolicyBound:
    """Two-sided PAC-Bayes bound on the risk of a randomised policy, from logged data alone.

    With probability at least 1 - delta, for all laws Q over deterministic policies at once,
    |R - estimate| <= sqrt(KL1 / 2n) + B + KL2 / (n scale) + scale / 2 V, where KL1 = KL(Q|P) + log(4 sqrt(n) / delta),
    KL2 = KL(Q|P) + log(4 / delta), B = 1 - mean_i sum_a pi pi_0^(1 - alpha) and
    V = mean_i [sum_a pi pi_0^(1 - 2 alpha) + pi(a_i) c_i^2 / pi_0(a_i)^(2 alpha)]: the bound of Aouali et al. 2023.
    It holds where pi(a|x) is the share of Q's policies that choose a, as in ``GaussianArgmax``, not for one softmax
    policy; and for alpha and scale fixed before the data were seen. On digits it was informative from some 20000 rows
    on, and tightest at alpha 1.

    Args:
        policy: probabilities (n, K) of the randomised policy.
        logging: probabilities (n, K) of the one that logged.
        action, cost: what was done and what it cost, (n,), costs in [-1, 0].
        kl: KL(Q|P) from a prior that knows nothing of the data.
        alpha: as of ``smoothed_weights``.
        scale: lambda, above 0; None: 1 / sqrt(n).
        delta: probability with which the bound may fail, in (0, 1).
        rows: n, where the tensors are a batch of a larger set; None: their length. Of a batch it is a training
            objective, of all data the certificate.

    Raises:
        ValueError: for costs outside [-1, 0] or of another shape, or a number out of its range.
    """
    _check(alpha)
    n = len(cost) if rows is None else rows
    scale = 1 / math.sqrt(n) if scale is None else scale
    if not scale > 0 or not 0 < delta < 1:
        raise ValueError(f"scale must be above 0 and delta in (0, 1), got {scale:g} and {delta:g}")
    if not bool(((cost >= -1) & (cost <= 0)).all()):
        raise ValueError("costs must be in [-1, 0]: turn rewards round and scale them")
    taken, propensity = (p.gather(-1, action[:, None]).squeeze(-1) for p in (policy, logging))
    _check_rows(taken, cost=cost)
    kl = torch.as_tensor(kl, dtype=policy.dtype, device=policy.device)
    first, second = kl + math.log(4 * math.sqrt(n) / delta), kl + math.log(4 / delta)
    everywhere = (policy * logging ** (1 - 2 * alpha)).sum(-1)
    logged = smoothed_weights(taken, propensity.square(), alpha) * cost.square()
    return OffPolicyBound(
        estimate=(smoothed_weights(taken, propensity, alpha) * cost).mean(),
        bias=1 - (policy * logging ** (1 - alpha)).sum(-1).mean(),
        complexity=(first / (2 * n)).sqrt() + second / (n * scale),
        spread=scale / 2 * (everywhere + logged).mean(),
    )


def argmax_probabilities(mean: Tensor, spread: Tensor, nodes: int = 32) -> Tensor:
    """Log-probability that each of K independent normal scores is the largest.

    By Gauss-Hermite quadrature of E_z prod_{b != a} Phi(z + (m_a - m_b) / s), differentiable and the same every time.

    Args:
        mean: (..., K).
        spread: standard deviation that the K share, (...), above 0.
        nodes: of the quadrature; 32 are right to 1e-6 for ten scores. Takes nodes * K numbers for each score.

    Returns:
        shape (..., K), normalised, float32 or wider.
    """
    mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    z = torch.as_tensor(points, dtype=mean.dtype, device=mean.device)
    log_weight = torch.as_tensor(weights / weights.sum(), dtype=mean.dtype, device=mean.device).log()
    m = mean / spread.unsqueeze(-1)
    ahead = torch.special.log_ndtr(z + (m.unsqueeze(-1) - m.unsqueeze(-2)).unsqueeze(-1))  # (..., a, b, node)
    others = ahead.sum(-2) - torch.special.log_ndtr(z)  # b = a is no rival
    return (others + log_weight).logsumexp(-1).log_softmax(-1)


class GaussianArgmax(nn.Module):
    """A randomised policy: argmax of linear scores whose weights are drawn from a Gaussian, as bounds want it.

    Called with x it gives log-probabilities (B, K), which serve as logits in any task.

    Args:
        features: a module, x to (B, width), which saw none of the logged data; it is frozen.
        width: number of features.
        actions: K.
        sigma: standard deviation of every weight, in the law and in its prior; above 0.
        prior: mean weights of the prior (actions, width), chosen without the data; None: zeros. Training starts there.

    Raises:
        ValueError: if sigma is not positive, or the prior has another shape.
    """

    prior: Tensor

    def __init__(
        self, features: nn.Module, width: int, actions: int, sigma: float = 1.0, prior: Tensor | None = None
    ) -> None:
        super().__init__()
        start = torch.zeros(actions, width) if prior is None else prior.detach().clone()
        if not sigma > 0 or start.shape != (actions, width):
            raise ValueError(
                f"GaussianArgmax: sigma must be above 0 and the prior {(actions, width)}, "
                f"got {sigma:g} and {tuple(start.shape)}"
            )
        self.features, self.sigma = features.requires_grad_(False), sigma
        self.register_buffer("prior", start)
        self.weight = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        with evaluating(self.features), torch.no_grad():  # statistics of the logged data must not enter
            found = self.features(x)
        norm = torch.linalg.vector_norm(found, dim=-1).clamp_min(torch.finfo(found.dtype).eps)
        return argmax_probabilities(found @ self.weight.T, self.sigma * norm)

    def kl(self) -> Tensor:
        """KL divergence of the law from its prior, a scalar."""
        return (self.weight - self.prior).square().sum() / (2 * self.sigma**2)


def _check_rows(taken: Tensor, **given: Tensor) -> None:
    for name, values in given.items():
        if values.shape != taken.shape:  # (B, 1) would be multiplied out to (B, B)
            raise ValueError(f"{name} is a number for each of {len(taken)} rows, got shape {tuple(values.shape)}")


def _check(alpha: float, clip: float | None = None) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha:g}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip:g}")
