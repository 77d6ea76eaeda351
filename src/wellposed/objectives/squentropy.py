"""Squentropy: cross-entropy plus the mean square of the wrong classes' logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Method, Step, knob
from ..core.schedules import Scalar
from ..tasks.targets import is_class_ids, one_hot

__all__ = ["Squentropy", "rescaled_square_loss", "squentropy_penalty"]


def squentropy_penalty(logits: Tensor, y: Tensor) -> Tensor:
    """Mean square of the wrong classes' logits.

    Args:
        logits: (..., C) with C >= 2; not shift invariant, so do not centre them.
        y: class ids (...) or distributions (..., C), for which the wrong share of class j is 1 - y_j.

    Returns:
        sum_{j != y} f_j^2 / (C - 1), shape (...); Hui, Belkin, Wright 2023 (arXiv 2302.03952), section 3.

    Raises:
        ValueError: with fewer than two classes.
    """
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError(f"squentropy needs logits of at least 2 classes, got {classes}")
    if is_class_ids(y):  # masked and not subtracted, so that a large true logit costs no precision
        wrong = logits.scatter(-1, y.clamp(min=0).unsqueeze(-1), 0.0).square()
    else:
        wrong = logits.square() * (1 - y)
    return wrong.sum(-1) / (classes - 1)


def rescaled_square_loss(logits: Tensor, y: Tensor, k: float = 1.0, M: float = 1.0) -> Tensor:
    """The square loss for classification that squentropy was compared with.

    Args:
        logits: (..., C).
        y: class ids (...) or distributions (..., C).
        k: weight of the true class, above 0.
        M: target of the true logit, above 0.

    Returns:
        (k (f_y - M)^2 + sum_{j != y} f_j^2) / C, shape (...); Hui and Belkin 2021 (arXiv 2006.07322).

    Raises:
        ValueError: if k or M is not above 0.
    """
    if not (k > 0 and M > 0):
        raise ValueError(f"rescaled_square_loss needs k and M above 0, got k={k:g} and M={M:g}")
    true = one_hot(y, logits.shape[-1], logits.dtype)
    return torch.lerp(logits.square(), k * (logits - M).square(), true).mean(-1)


class Squentropy(Method, paper="squentropy"):
    r"""Squentropy: cross-entropy plus the mean square of the wrong classes' logits.

    Computes:
        strength * sum_{j != y} f_j^2 / (C - 1) beside the cross-entropy of the task. The true logit is free; squaring
        all of them would be spectral decoupling.

    Formula:
        -\log p_y + \frac{\lambda}{C - 1} \sum_{j \neq y} f_j^2

    Helps:
        Calibration where cross-entropy is over-confident (overlapping classes: calibration error -7 points), and
        wrong labels moderately (+6 to +8 points at 40 % on digits). No knob to tune.

    Avoid:
        For accuracy on clean data, where the change is within noise. Less variance over initialisations, as the paper
        reports, was not checked here.

    Defaults:
        strength 1: the paper's loss, which has no hyper-parameter.

    Cost:
        One pass.

    Reference:
        Hui, Belkin, Wright 2023, Cut your Losses with Squentropy, arXiv 2302.03952, section 3.

    Args:
        strength: factor of the penalty.
    """

    reads = ("logits", "y")
    targets = frozenset({"class", "token"})

    strength: Scalar = knob(1.0, low=0.0, grid=(0.3, 1.0, 3.0), log=True)

    def penalty(self, step: Step) -> Tensor:
        return step.task.reduce(squentropy_penalty(step.out["logits"], step.batch["y"]), step.batch)
