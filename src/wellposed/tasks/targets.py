"""Targets of classification in their three forms: class ids, distributions over classes, and sets of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def is_class_ids(y: Tensor) -> bool:
    """Whether ``y`` holds class ids (integers), not probabilities."""
    return not torch.is_floating_point(y)


def one_hot(y: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Distributions over classes, shape (..., classes); distributions pass through."""
    return F.one_hot(y, classes).to(dtype) if is_class_ids(y) else y.to(dtype)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each prediction.

    Args:
        logits: (..., C).
        y: class ids (...) or distributions (..., C).

    Returns:
        shape (...).
    """
    if is_class_ids(y):
        return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)
    return -(F.log_softmax(logits, -1) * y).sum(-1)


def true_probability(logits: Tensor, y: Tensor) -> Tensor:
    """Probability given to the target, shape (...): p_y, or sum_k y_k p_k for a distribution y."""
    if is_class_ids(y):
        return (-cross_entropy(logits, y)).exp()
    return (F.softmax(logits, -1) * y).sum(-1)


def conditional_entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of each predicted distribution.

    Args:
        logits: (..., C); -inf excludes a class.

    Returns:
        shape (...), in nats, 0 to log C, in at least float32.
    """
    logs = F.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    # bounded from below, where a probability is 0: else value and gradient would be 0 * inf
    return -(logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(-1)
