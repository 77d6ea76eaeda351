"""PolyLoss: other leading coefficients in the power series of the cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import Method, Step, knob
from ..core.schedules import Scalar
from ..tasks.targets import cross_entropy, is_class_ids, true_probability

__all__ = ["PolyLoss", "poly_focal_loss", "poly_terms"]


def _missing_probability(logits: Tensor, y: Tensor) -> Tensor:
    """1 - p_t, shape (...), with p_t = sum_k y_k p_k for distributions."""
    return -torch.expm1(-cross_entropy(logits, y)) if is_class_ids(y) else 1 - true_probability(logits, y)


def poly_terms(logits: Tensor, y: Tensor, epsilons: Sequence[float] = (1.0,)) -> Tensor:
    """What Poly-N adds to the cross-entropy: sum_j epsilon_j (1 - p_t)^j.

    Args:
        logits: (..., C).
        y: class ids (...) or distributions (..., C).
        epsilons: change of the first coefficients, epsilon_1 first; the cross-entropy itself has 1/j.

    Returns:
        shape (...); Leng et al. 2022 (arXiv 2204.12511), section 4.
    """
    base = _missing_probability(logits, y)
    total = torch.zeros_like(base)
    for epsilon in reversed(epsilons):  # Horner
        total = (total + epsilon) * base
    return total


def poly_focal_loss(logits: Tensor, y: Tensor, gamma: float = 2.0, epsilon: float = 1.0) -> Tensor:
    """Poly-1 form of the focal loss: (1 - p_t)^gamma CE + epsilon (1 - p_t)^(gamma + 1).

    Args:
        logits: (..., C).
        y: class ids (...) or distributions (..., C).
        gamma: focusing power, at least 0; 0 and epsilon 0 is the cross-entropy.
        epsilon: change of the leading coefficient, at least -1.

    Returns:
        shape (...); Leng et al. 2022 (arXiv 2204.12511), section 5.

    Raises:
        ValueError: if gamma or epsilon is out of range.
    """
    if not (gamma >= 0 and epsilon >= -1):
        raise ValueError(f"poly_focal_loss needs gamma >= 0 and epsilon >= -1, got {gamma:g} and {epsilon:g}")
    base = _missing_probability(logits, y)
    return base**gamma * (cross_entropy(logits, y) + epsilon * base)


class PolyLoss(Method, paper="poly-loss"):
    r"""PolyLoss: other leading coefficients in the power series of the cross-entropy.

    Computes:
        strength * sum_j c_j (1 - p_t)^j beside the task's cross-entropy, which is sum_j (1 - p_t)^j / j. With one
        coefficient (Poly-1) the gradient is that of the cross-entropy times 1 + strength * p_t, for every p_t.

    Formula:
        -\log p_t + \lambda \sum_{j=1}^{N} c_j (1 - p_t)^j, \qquad -\log p_t = \sum_{j=1}^{\infty} \frac{(1 - p_t)^j}{j}

    Helps:
        Wrong labels a little (digits: +2 to +4 points at 20 to 40 %, strength 2 to 4). The paper reports gains of half
        a point on ImageNet, and more for detection, each with its own strength.

    Avoid:
        Without a search of the strength: its sign depends on the task. Negative values weaken the gradient of
        confident examples; -1 lost 2.5 points with 40 % wrong labels.

    Defaults:
        strength 2, the paper's for ImageNet-1K; it uses -1 for instance segmentation and searches to about 6.

    Cost:
        One pass.

    Reference:
        Leng, Tan, Liu, Cubuk, Shi, Cheng, Anguelov 2022, PolyLoss: A Polynomial Expansion Perspective of
        Classification Loss Functions, arXiv 2204.12511, section 4. The gradient identity is our own derivation.

    Args:
        strength: epsilon_1 of the paper, at least -1: below, the gradient turns where p_t > -1 / strength.
        coefficients: c_1, c_2, ...; epsilon_j = strength * c_j.
    """

    reads = ("logits", "y")
    targets = frozenset({"class", "token"})

    strength: Scalar = knob(2.0, low=-1.0, grid=(-1.0, 2.0, 4.0))
    coefficients: tuple[float, ...] = (1.0,)

    def check(self) -> None:
        if not self.coefficients:
            raise ValueError("PolyLoss: coefficients must hold at least one number, got none")

    def penalty(self, step: Step) -> Tensor:
        return step.task.reduce(poly_terms(step.out["logits"], step.batch["y"], self.coefficients), step.batch)
