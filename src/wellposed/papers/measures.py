"""What claims measure, on any model. Shares and accuracies are in points (0-100), log-likelihoods in nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.modes import evaluating
from ..parts.attacks import Box, Norm, pgd, random_start
from ..parts.curvature import gaussian, hessian, power_iteration
from ..parts.spectra import effective_rank as effective_rank
from ..workbench.metrics import accuracy, classification, expected_calibration_error

Corruption = Callable[[Tensor, float, np.random.Generator], Tensor]


@torch.no_grad()
def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says of ``x`` in evaluation mode, without a graph."""
    with evaluating(model):
        out: Tensor = model(x)
    return out


def quality(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, NLL and expected calibration error (points) of a classifier."""
    return classification(predictions(model, x), y)


def nll(logits: Tensor, y: Tensor) -> float:
    """Negative log-likelihood of class ids (...) under logits (..., C)."""
    return float(F.cross_entropy(logits.flatten(0, -2), y.flatten()))


def ece(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error of logits (N, C)."""
    return expected_calibration_error(logits.softmax(-1), y, bins)


def memorised(model: nn.Module, x: Tensor, given: Tensor, clean: Tensor) -> float:
    """Share of the wrong labels among ``given`` that the model predicts; 0 where none is wrong."""
    wrong = given != clean
    return accuracy(predictions(model, x[wrong]), given[wrong]) if wrong.any() else 0.0


# ---- robustness
def corrupted_accuracy(
    model: nn.Module, x: Tensor, y: Tensor, corruption: Corruption, severity: float, seed: int = 1
) -> float:
    """Accuracy on inputs shifted by a corruption of ``workbench.data.corruptions``."""
    return accuracy(predictions(model, corruption(x, severity, np.random.default_rng(seed))), y)


def attacked_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float,
    steps: int = 10,
    norm: Norm = "linf",
    box: Box | None = (0.0, 1.0),
    seed: int = 1,
) -> float:
    """Accuracy under projected gradient ascent, from a random start, of the best wrong logit minus the right one.

    The cross-entropy would not do: its gradient vanishes where logits are huge, and a net of huge logits looks robust.
    """
    start = random_start(x, radius, norm, torch.Generator(x.device).manual_seed(seed))

    def margin(at: Tensor) -> Tensor:
        logits = model(at)
        right = logits.gather(-1, y[:, None])
        wrong: Tensor = logits.scatter(-1, y[:, None], -math.inf).amax(-1) - right[:, 0]
        return wrong

    with evaluating(model):
        moved = pgd(margin, x, radius, steps, norm=norm, box=box, start=start)
    return accuracy(predictions(model, moved), y)


# ---- the minimum
def sharpness(model: nn.Module, loss: Callable[[], Tensor], iterations: int = 15, seed: int = 1) -> float:
    """Hessian eigenvalue largest in magnitude of a loss of the trainable parameters, by power iteration."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = gaussian(params, torch.Generator(next(iter(params.values())).device).manual_seed(seed))
    with evaluating(model):
        return float(power_iteration(hessian(loss, params), start, iterations).value)


# ---- weights, features, tasks
def zeros(tensors: Tensor | Iterable[Tensor]) -> float:
    """Share of entries that are exactly 0."""
    each = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    count = sum(t.numel() for t in each)
    return 100 * sum(t.numel() - int(t.count_nonzero()) for t in each) / count if count else math.nan


def forgetting(accuracies: Sequence[Sequence[float]]) -> float:
    """How much accuracy a stream of tasks lost on the old ones: mean over them of the best ever minus the last.

    Args:
        accuracies: row i, column j: on task j after training on task i; at least two tasks. What comes before task j
            was trained (j > i) is not looked at.

    Chaudhry et al. 2018 (arXiv 1801.10112), Eq. 3.
    """
    last = len(accuracies) - 1
    lost = [max(accuracies[i][j] for i in range(j, last)) - accuracies[last][j] for j in range(last)]
    return sum(lost) / len(lost)
