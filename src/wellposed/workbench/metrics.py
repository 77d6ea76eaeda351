"""What a trained model is measured by; every value is a float, accuracies in points (0-100)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def expected_calibration_error(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, in points.

    Args:
        probs: (N, C), rows sum to 1.
        y: class ids (N,).
        bins: number of bins over [0, 1]; a confidence of exactly 1 belongs to the last.

    Guo et al. 2017 (arXiv 1706.04599), Eq. 3.
    """
    confidence, guess = probs.max(-1)
    hit = (guess == y).to(probs.dtype)
    place = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=probs.dtype).index_add_(0, place, hit - confidence)
    return 100 * float(gap.abs().sum()) / len(y)


def classification(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood (nats) and calibration error of logits (..., C) for ids (...)."""
    logits, y = logits.flatten(0, -2).float(), y.flatten()
    return {
        "accuracy": accuracy(logits, y),
        "nll": float(F.cross_entropy(logits, y)),
        "ece": expected_calibration_error(F.softmax(logits, -1), y),
    }


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of right answers, in points."""
    return 100 * float((logits.argmax(-1) == y).float().mean())


def language(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Negative log-likelihood per token in nats, and accuracy of the next token."""
    found = classification(logits, y)
    return {"nll": found["nll"], "accuracy": found["accuracy"]}


def regression(prediction: Tensor, y: Tensor, scale: float) -> dict[str, float]:
    """Root mean square error and mean absolute error in the user's unit, and R^2.

    Args:
        prediction, y: (N,) in standardised units.
        scale: the user's unit in standardised units.
    """
    error = prediction.float() - y
    spread = float((y - y.mean()).pow(2).mean())
    return {
        "rmse": scale * math.sqrt(float(error.pow(2).mean())),
        "mae": scale * float(error.abs().mean()),
        "r2": 1 - float(error.pow(2).mean()) / spread if spread > 0 else math.nan,
    }


def one(name: str, out: Tensor, y: Tensor, scale: float = 1.0) -> float:
    """A single metric of outputs, without the work for the others."""
    if name == "accuracy":
        return accuracy(out, y)
    if name == "nll":
        return float(F.cross_entropy(out.flatten(0, -2).float(), y.flatten()))
    if name == "ece":
        return classification(out, y)["ece"]
    return regression(out.view(y.shape), y, scale)[name]


def standard_error(name: str, out: Tensor, y: Tensor, scale: float = 1.0) -> float:
    """Standard error of ``one`` over the samples (delta method for rmse; nan where there is no simple form)."""
    if name == "accuracy":
        each = 100 * (out.argmax(-1) == y).float().flatten()
    elif name == "nll":
        each = F.cross_entropy(out.flatten(0, -2).float(), y.flatten(), reduction="none")
    elif name in {"rmse", "mae"}:
        error = scale * (out.view(y.shape).float() - y)
        each = error.abs() if name == "mae" else error.pow(2) / (2 * error.pow(2).mean().sqrt().clamp_min(1e-12))
    else:
        return math.nan
    return float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan


METRICS: dict[str, dict[str, str]] = {
    "classification": {"accuracy": "max", "nll": "min", "ece": "min"},
    "regression": {"rmse": "min", "mae": "min", "r2": "max"},
    "language": {"nll": "min", "accuracy": "max"},
}
"""Metrics each kind of task may be ranked by, with their direction; the first is the default."""
