"""INLP: representations from which no linear classifier reads an attribute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.citing import implements

__all__ = ["INLP", "NullspaceProjection", "inlp", "nullspace_projection", "tpr_gap"]


def nullspace_projection(weights: Tensor, tolerance: float = 1e-6) -> Tensor:
    """The orthogonal projection that removes all rows: (K, D) -> P (D, D), symmetric, P P = P, P w = 0.

    Args:
        weights: directions, any length, possibly dependent.
        tolerance: singular values of the unit rows below this share of the largest count as zero.
    """
    unit = weights / torch.linalg.vector_norm(weights, dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    _, singular, v = torch.linalg.svd(unit, full_matrices=False)
    basis = v[singular > tolerance * singular[:1]]
    return torch.eye(weights.shape[1], dtype=weights.dtype, device=weights.device) - basis.T @ basis


class NullspaceProjection(nn.Module):
    """A frozen layer x -> x P that goes behind an encoder: (..., D) to (..., D)."""

    projection: Tensor

    def __init__(self, projection: Tensor) -> None:
        super().__init__()
        self.register_buffer("projection", projection)

    def forward(self, x: Tensor) -> Tensor:
        """The guarded representation."""
        return x @ self.projection.to(x)


@dataclass(frozen=True)
class INLP:
    """What ``inlp`` found.

    Attributes:
        projection: P, (D, D), in float64.
        directions: the classifiers' weights, (K, D); P removes them all.
        accuracies: of each classifier on development data, in [0, 1], before its directions were removed; the last one
            found nothing, or ended the budget.
        majority: share of the most frequent class in the development data: what reading nothing gives.
    """

    projection: Tensor
    directions: Tensor
    accuracies: tuple[float, ...]
    majority: float

    def layer(self) -> NullspaceProjection:
        """The projection as a module."""
        return NullspaceProjection(self.projection)


@implements("inlp")
def inlp(
    x: Tensor,
    z: Tensor,
    x_dev: Tensor,
    z_dev: Tensor,
    *,
    steps: int = 20,
    above: float = 0.02,
    penalty: float = 1e-2,
) -> INLP:
    r"""Iterative null-space projection: fit a linear classifier of the attribute, remove its directions, repeat.

    ``guarded = inlp(h, z, h_dev, z_dev).layer()``, a module to put behind the encoder that gave ``h``.

    Computes:
        At each step a logistic regression for the attribute on the representations projected so far; its weights, which
        lie in what is left, join the directions to remove. The projection is always made anew from all directions and
        applied to the original representations, so that no rounding builds up. Ends when the classifier is no longer
        better than the majority on development data.

    Formula:
        P = I - U U^\top, \quad \mathrm{span}(U) = \mathrm{rowspace}([W_1; \dots; W_k])

    Helps:
        A protected attribute (or a nuisance: the scanner, the site) must not be readable from representations by any
        linear probe, without training the encoder again.

    Avoid:
        As a guard against non-linear readers: they may still find the attribute. Where classes have equal covariance
        the difference of the class means is already the exact eraser, and one step of it does as well. What label and
        attribute share is removed from both: the label's probe lost 12 points where they agreed in 75 % of the cases.

    Defaults:
        20 steps at most, ended within 2 points of the majority; L2 penalty 0.01 over n of the logistic regression. The
        authors take linear SVMs, up to 300 steps, and no such end.

    Cost:
        One logistic regression and one thin singular value decomposition a step; one D x D product at use.

    Reference:
        Ravfogel, Elazar, Gonen, Twiton, Goldberg 2020, Null It Out: Guarding Protected Attributes by Iterative
        Nullspace Projection, arXiv 2004.07667, Algorithm 1. The intersection of null spaces is taken from the stacked
        directions, which is the authors' final form; a product of projections need not be one.

    Args:
        x, x_dev: representations of training and development data, (N, D) and (M, D).
        z, z_dev: the attribute as classes, integers (N,) and (M,).
        steps: classifiers at most, at least 1.
        above: accuracy above the majority, a share, at which the attribute counts as unreadable.
        penalty: weight decay of the classifiers.

    Raises:
        ValueError: for one class only, non-finite representations, or shapes that do not fit.
        ModuleNotFoundError: without scikit-learn.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError:
        raise ModuleNotFoundError("inlp fits logistic regressions: pip install 'wellposed[workbench]'") from None
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    for name, a, b in (("x", x, z), ("x_dev", x_dev, z_dev)):
        if a.ndim != 2 or len(a) != len(b) or not a.isfinite().all():
            raise ValueError(
                f"{name} must be finite, (N, D), with one attribute each; got {tuple(a.shape)} and {len(b)}"
            )
    if len(torch.unique(z)) < 2:
        raise ValueError("the attribute has one class only: there is nothing to guard")
    work, dev = x.detach().double(), x_dev.detach().double()
    scale = work.std(0).mean().clamp_min(torch.finfo(work.dtype).tiny)  # the penalty means the same in any unit
    projection = torch.eye(work.shape[1], dtype=work.dtype, device=work.device)
    majority = float(torch.unique(z_dev, return_counts=True)[1].max()) / len(z_dev)
    directions = work.new_zeros(0, work.shape[1])
    accuracies: list[float] = []
    for _ in range(steps):
        classifier: Any = LogisticRegression(C=1 / (penalty * len(work)), max_iter=1000)
        classifier.fit((work @ projection / scale).cpu().numpy(), z.cpu().numpy())
        read = classifier.predict((dev @ projection / scale).cpu().numpy())
        accuracies.append(float((torch.as_tensor(read) == z_dev.cpu()).double().mean()))
        if accuracies[-1] <= majority + above:
            break
        found = torch.as_tensor(classifier.coef_).to(work) @ projection  # the solver leaves rounding outside
        directions = torch.cat([directions, found])
        projection = nullspace_projection(directions)
    return INLP(projection, directions, tuple(accuracies), majority)


def tpr_gap(predicted: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Root mean square over classes of the difference in recall between two groups; a scalar in [0, 1].

    Args:
        predicted, y: classes, (N,).
        z: group, 0 or 1, (N,).

    Raises:
        ValueError: if no class has members of both groups.
    """
    gaps = []
    for c in torch.unique(y):
        groups = [(y == c) & (z == g) for g in (0, 1)]
        if all(bool(g.any()) for g in groups):
            one, other = ((predicted[g] == c).double().mean() for g in groups)
            gaps.append(one - other)
    if not gaps:
        raise ValueError("no class has members of both groups 0 and 1")
    return torch.stack(gaps).square().mean().sqrt()
