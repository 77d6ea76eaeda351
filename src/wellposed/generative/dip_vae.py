"""DIP-VAE: latent coordinates that are uncorrelated over the data; and the SAP score of disentanglement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Method, Step, knob
from ..core.schedules import Scalar
from ..parts.spectra import centred, covariance, wide

__all__ = ["DIPVAE", "dip_penalty", "sap_matrix", "sap_score"]

Kind = Literal["i", "ii"]


def dip_penalty(mean: Tensor, log_variance: Tensor | None = None, diagonal: float = 10.0) -> Tensor:
    """How far the covariance C of the codes is from the identity: sum_(i != j) C_ij^2 + diagonal sum_i (C_ii - 1)^2.

    Args:
        mean: means of the codes' laws, (B, d), B at least 2.
        log_variance: logarithms of their variances, (B, d). C is then the covariance of drawn codes, that of the means
            plus the mean of the variances (type II); None: of the means alone (type I).
        diagonal: weight of the second sum.

    Returns:
        a scalar in at least float32; Kumar et al. 2017 (arXiv 1711.00848), Eqs. 5 to 7. Covariances are divided by B.

    Raises:
        ValueError: for a single row.
    """
    if len(mean) < 2:
        raise ValueError("dip_penalty: a covariance needs at least 2 codes in a batch")
    found = covariance(mean)
    variances = found.diagonal()
    apart = found.square().sum() - variances.square().sum()
    if log_variance is not None:
        variances = variances + wide(log_variance).exp().mean(0)
    return apart + diagonal * (variances - 1).square().sum()


def sap_matrix(
    code: Tensor, factors: Tensor, discrete: bool | Sequence[bool] = False, inactive: float = 1e-12
) -> Tensor:
    """How well each latent coordinate alone predicts each factor, in [0, 1].

    Args:
        code: (N, d).
        factors: (N, F).
        discrete: for each factor, or all, whether its values are K classes. Then the score is the best balanced
            accuracy of at most K intervals of the coordinate, each given one class; else the squared correlation.
        inactive: coordinates of no more variance score 0.

    Returns:
        shape (d, F); Kumar et al. 2017 (arXiv 1711.00848), section 3.

    Raises:
        ValueError: for shapes that do not fit, or a factor that never varies.
    """
    if code.ndim != 2 or factors.ndim != 2 or len(code) != len(factors) or len(code) < 2:
        raise ValueError(
            f"sap_matrix: needs codes (N, d) and factors (N, F), got {tuple(code.shape)} and {tuple(factors.shape)}"
        )
    classes = [discrete] * factors.shape[1] if isinstance(discrete, bool) else list(discrete)
    if len(classes) != factors.shape[1]:
        raise ValueError(f"sap_matrix: discrete has {len(classes)} entries for {factors.shape[1]} factors")
    if constant := [j for j in range(len(classes)) if (factors[:, j] == factors[0, j]).all()]:
        raise ValueError(f"sap_matrix: factor {constant[0]} has one value only: nothing to predict")
    code = wide(code.detach())
    scores = [
        _interval_accuracy(code, factors[:, j]) if some else _squared_correlation(code, factors[:, j].to(code))
        for j, some in enumerate(classes)
    ]
    active = code.var(0, correction=0) > inactive
    return torch.stack(scores, 1) * active[:, None]


def sap_score(
    code: Tensor, factors: Tensor, discrete: bool | Sequence[bool] = False, inactive: float = 1e-12
) -> Tensor:
    """Separated attribute predictability: the lead of the best coordinate over the second best, mean over factors.

    1: each factor is told by one coordinate alone; 0: always by two equally well, or by none. Two coordinates that hold
    one factor are punished as much as none.

    Args:
        code: (N, d), d at least 2; means, where the codes are drawn.
        factors, discrete, inactive: as of ``sap_matrix``.

    Returns:
        a scalar in [0, 1].

    Raises:
        ValueError: as ``sap_matrix``, and for a single coordinate.
    """
    if code.ndim == 2 and code.shape[1] < 2:
        raise ValueError("sap_score: compares the best two coordinates, and the codes have one")
    best = sap_matrix(code, factors, discrete, inactive).topk(2, dim=0).values
    return (best[0] - best[1]).mean()


class DIPVAE(Method, paper="dip-vae"):
    r"""DIP-VAE: the latent coordinates of a VAE become uncorrelated over the data, of variance 1.

    Computes:
        strength * (sum_(i != j) C_ij^2 + diagonal * sum_i (C_ii - 1)^2) over the batch (of all ranks). Type I: C is the
        covariance of the posterior means. Type II: of the drawn codes, the means' covariance plus the mean of the
        posterior variances, which adds to the diagonal. Beside ``Autoencode(beta=1)``, whose divergence stays.

    Formula:
        \lambda \left( \sum_{i \ne j} C_{ij}^2 + \rho \sum_i (C_{ii} - 1)^2 \right)
        C^{\mathrm{I}} = \mathrm{Cov}_x[\mu(x)], \qquad C^{\mathrm{II}} = \mathrm{Cov}_x[\mu(x)] + \mathbb{E}_x[\mathrm{diag}\, \sigma^2(x)]

    Helps:
        Independent factors in separate coordinates, at less cost to reconstruction than a large beta. On images of a
        blob type II raised the SAP score of a VAE in five of five runs, in four of them further than beta 4 did, at two
        thirds of its error.

    Avoid:
        Batches that are not much larger than the code is wide: the covariance is a batch statistic. Type I where the
        code is wider than the data has factors: it forces unused coordinates to variance 1, and the SAP score fell
        as often as it rose. Judging by covariances: a VAE shrinks the coordinates it does not use, so its raw ones are small, too.

    Defaults:
        Type I with strength 10; diagonal 10 for type I and 1 for type II, the paper's. Strengths from 1 to 500 are in
        use. They are relative to a log-likelihood: beside a squared error that stands for noise of variance v
        (``Autoencode(beta=2 * v)``) take 2 v times as much.

    Cost:
        One pass; one (d, B) x (B, d) product.

    Reference:
        Kumar, Sattigeri, Balakrishnan 2017, Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations, arXiv 1711.00848, Eqs. 5 to 7.

    Args:
        kind: "i" or "ii".
        diagonal: weight of the variances beside the covariances; None: 10 for type I, 1 for type II.
        strength: factor of the penalty, lambda_od in the paper.
    """  # noqa: E501

    scope = "batch"
    exact = False  # each rank draws its own codes
    reads = ("mean", "log_variance")
    example = {"model": "variational", "strength": 0.1}  # a fourth power of the weights, at a trial's large rate

    kind: Kind = "i"
    diagonal: float | None = knob(None, low=0.0)
    strength: Scalar = knob(10.0, low=0.0, grid=(2.0, 10.0, 50.0), log=True)

    def check(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"DIPVAE: kind must be 'i' or 'ii', got {self.kind!r}")

    def penalty(self, step: Step) -> Tensor:
        mean = step.gather(step.out["mean"].flatten(1))
        drawn = self.kind == "ii"
        log_variance = step.gather(step.out["log_variance"].flatten(1)) if drawn else None
        diagonal = self.diagonal if self.diagonal is not None else (1.0 if drawn else 10.0)
        return dip_penalty(mean, log_variance, diagonal)


def _squared_correlation(code: Tensor, factor: Tensor) -> Tensor:
    """Of each column of (N, d) with (N,); 0 for a constant column."""
    code, factor = centred(code), factor - factor.mean()
    own = code.square().sum(0) * factor.square().sum()
    return (factor @ code).square() / own.where(own > 0, 1)


def _interval_accuracy(code: Tensor, factor: Tensor) -> Tensor:
    """Best balanced accuracy, (d,), of K intervals of each column of (N, d) that each predict one of K classes.

    By dynamic programming over the number of intervals: W_c(n) is the share, over K, of class c among the n smallest
    values, and the best up to n is best(n) = max_c W_c(n) + max_(m <= n) (best(m) - W_c(m)).
    """
    values, order = code.sort(dim=0)
    label = torch.unique(factor, return_inverse=True)[1]
    count = label.bincount()
    hits = F.one_hot(label).to(code) / (count * len(count))
    share = F.pad(hits[order].cumsum(0), (0, 0, 0, 0, 1, 0))  # (N + 1, d, K)
    cut = torch.ones(len(code) + 1, code.shape[1], dtype=torch.bool, device=code.device)
    cut[1:-1] = values[1:] > values[:-1]  # no threshold between equal values
    best = torch.zeros_like(share[..., 0])
    for _ in count:
        start = best.where(cut, -torch.inf)[..., None] - share
        best = (share + start.cummax(0).values).amax(-1)
    return best[-1]
