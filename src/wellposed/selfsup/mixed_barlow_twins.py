"""Mixed Barlow Twins: embeddings of mixed inputs are mixtures, too, as far as their correlations tell."""

from __future__ import annotations

import torch
from torch import Tensor

from ..augmentation._mixing import draw_mixture
from ..core import Method, Step, knob
from ..core.parallel import rank
from ..core.schedules import Scalar
from .barlow_twins import square_and_diagonal, standardised

__all__ = ["MixedBarlowTwins", "mixed_correlation_gap"]


def mixed_correlation_gap(
    z1: Tensor, z2: Tensor, mixed: Tensor, partner: Tensor, share: float | Tensor, eps: float = 1e-5
) -> Tensor:
    """How far the correlations of mixed embeddings with both views are from mixtures of the unmixed correlations.

    C(m, z1) - [a C(z1, z1) + (1 - a) C(z2', z1)] = (m - a z1 - (1 - a) z2')^T z1 / N, z2' the partners' rows: one
    product in place of three, and of the smaller Gram matrices where the batch is small.

    Args:
        z1, z2: embeddings of the two views, (N, D).
        mixed: embeddings of share * x1 + (1 - share) * x2[partner], (N, D).
        partner: rows of z2 mixed into those of z1, (N,).
        share: of the first view, a number or (N, 1).
        eps: added to variances; all three embeddings are standardised over the batch.

    Returns:
        the sum of both squared Frobenius distances, a scalar in at least float32.
    """
    z1, z2, mixed = (standardised(z, eps) for z in (z1, z2, mixed))
    rest = mixed - share * z1 - (1 - share) * z2[partner]
    return square_and_diagonal(rest, z1)[0] + square_and_diagonal(rest, z2)[0]


class MixedBarlowTwins(Method, paper="mixed-barlow-twins"):
    r"""Mixed Barlow Twins: a regulariser of Barlow Twins against overfitting, by mixed inputs.

    Computes:
        Mixes each sample's first view with another's second view, x_m = a x1 + (1 - a) x2', one share a ~ Beta(alpha,
        alpha) a batch; embeds it; and penalises what the correlations of its embedding with both views differ from the
        same mixture of the unmixed correlations. Under data parallelism correlations are over all ranks' samples.
        Beside ``TwoViews(barlow_twins)``.

    Formula:
        L = \beta \lambda \left( \lVert C(z_m, z^A) - T_A \rVert_F^2 + \lVert C(z_m, z^B) - T_B \rVert_F^2 \right)
        T_A = a\, C(z^A, z^A) + (1 - a)\, C(z^{B\prime}, z^A)
        T_B = a\, C(z^A, z^B) + (1 - a)\, C(z^{B\prime}, z^B)

    Helps:
        The paper reports nearest neighbours that no longer get worse in long training, with wide embeddings.

    Avoid:
        Expecting a gain where Barlow Twins does not overfit: on digits the nearest neighbours of its features kept
        improving in training, and the term changed their accuracy by 0.4 points [-0.4, 1.3] over 20 seeds. Inputs that
        cannot be mixed (ids).

    Defaults:
        strength 5, redundancy 0.005, alpha 1: the authors' script; their recipes by data set have 4 and 0.0078.

    Cost:
        An extra pass over one view's worth of inputs: 1.5 passes.

    Reference:
        Bandara, De Melo, Patel 2023, Guarding Barlow Twins Against Overfitting with Mixed Samples, arXiv 2312.02151.
        The authors standardise by the unbiased deviation; here it is the biased one, as in Barlow Twins. Without
        standardising, the term of a linear encoder would be exactly 0; with it, it is not: a mixture varies less than
        what it is mixed from.

    Args:
        redundancy: lambda, that of ``barlow_twins``; a factor, too.
        alpha: of the Beta distribution of shares.
        strength: factor of the penalty beside ``redundancy``, beta.
    """

    scope = "batch"
    exact = False
    reads = ("x1", "x2", "z1", "z2")
    example = {"model": "views"}

    redundancy: float = knob(0.005, above=0.0, log=True)
    alpha: float = knob(1.0, above=0.0)
    strength: Scalar = knob(5.0, low=0.0, grid=(1.0, 5.0, 25.0), log=True)

    def penalty(self, step: Step) -> Tensor:
        x1, x2 = step.batch["x1"], step.batch["x2"]
        partner, share = draw_mixture(self, step, x1, self.alpha)
        x = torch.lerp(x2[partner], x1, share)
        half = len(x) // 2
        out = step.forward(x1=x[:half], x2=x[half:])  # the task stacks two views: here halves of one
        mixed = torch.cat([out["z1"], out["z2"]])
        z1, z2 = step.out["z1"], step.out["z2"]
        shares = step.gather(torch.full_like(z1[:, :1], share))
        partner = step.gather(partner + rank() * len(partner))  # among the rows of all ranks
        z1, z2, mixed = map(step.gather, (z1, z2, mixed))
        return self.redundancy * mixed_correlation_gap(z1, z2, mixed, partner, shares)

    def passes(self) -> float:
        return 1.5
