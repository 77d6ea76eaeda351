"""Machine unlearning: fine-tune on what is kept with a fading L1 penalty, and look whether the rest is forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Recipe, Task
from ..core.citing import implements
from ..core.modes import evaluating
from ..core.parallel import bare
from ..core.schedules import Constant, Steps
from ..core.task import Batch
from ..tasks.targets import is_class_ids
from ..weights.norm_penalties import L1

__all__ = ["UnlearningReport", "best_threshold", "fading", "l1_sparse_unlearn", "unlearning_report"]


def fading(gamma: float, epochs: int, plain: int = 0) -> Steps | Constant:
    """Strength that falls by equal steps from epoch to epoch, from ``gamma`` to 0 in the last ``plain`` epochs.

    Args:
        gamma: in the first epoch.
        epochs: in all.
        plain: epochs at the end without the penalty, fewer than ``epochs``.

    Returns:
        gamma (1 - e / (epochs - plain)) in epoch e, at least 0; Jia et al. 2023 (arXiv 2304.04934), Section 4.

    Raises:
        ValueError: if no epoch is left for the penalty.
    """
    if not 0 <= plain < epochs:
        raise ValueError(f"fading needs more epochs than plain ones, got {epochs} and {plain}")
    if epochs == 1:
        return Constant(gamma)
    values = tuple(gamma * max(0.0, 1 - e / (epochs - plain)) for e in range(epochs))
    return Steps(values, tuple(e / epochs for e in range(1, epochs)))


@implements("l1-sparse-unlearn")
def l1_sparse_unlearn(
    model: nn.Module,
    task: Task,
    retained: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int = 10,
    gamma: float = 5e-4,
    plain: int = 0,
    seed: int = 0,
) -> nn.Module:
    r"""L1-sparse unlearning: fine-tune on the retained data while a fading L1 penalty takes weights away.

    Computes:
        ``epochs`` passes over the retained batches, by the task's loss plus gamma_t times the sum of |w|. gamma_t falls
        by equal steps from epoch to epoch.

    Formula:
        \min_\theta \; L(\theta; D_r) + \gamma_t \lVert \theta \rVert_1
        \gamma_t = \gamma \left( 1 - \frac{t}{T} \right)

    Helps:
        Making a trained model forget samples or a class at the price of a few epochs, where plain fine-tuning leaves
        it remembering. On a membership attack the paper reports most of the gain; so it was on digits.

    Avoid:
        Expecting much on small models: for a tenth of 800 digits, at gamma 1e-3 under AdamW, the distance to retraining
        in four numbers fell from 7.4 to 5.9 points over 20 seeds, which is not told from nothing (0 to 3.1), and
        accuracy on the forgotten samples did not move. Expecting weights of exactly 0: subgradient steps circle around
        it. A gamma taken from another optimizer or model; more of it also means a worse fit of what is kept (3 points
        at 2e-3). As a proof of erasure: nothing here bounds what is left. Pruning first and then fine-tuning, the
        paper's other way, changed nothing that could be measured on digits.

    Defaults:
        gamma 5e-4 and 10 epochs, the paper's for SGD.

    Cost:
        ``epochs`` epochs of training on the retained data; one reading of the weights a step for the penalty.

    Reference:
        Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu 2023, Model Sparsity Can Simplify Machine Unlearning, arXiv
        2304.04934. The authors' code penalises biases and normalisation, too; here, as everywhere in this library,
        weights of two or more dimensions only.

    Args:
        model: trained on retained and forgotten data together; changed in place.
        task: what it learned.
        retained: batches of what may be remembered, iterated anew each epoch: a DataLoader or a list.
        optimizer: over the model's parameters.
        epochs: at least 1.
        gamma: strength in the first epoch.
        plain: epochs at the end without the penalty.
        seed: of the noise that the model draws, in dropout for instance.

    Returns:
        the model.

    Raises:
        ValueError: if there are no epochs, or no batches: an iterator that one pass has used up, say.
    """
    schedule = fading(gamma, epochs, plain)
    recipe = Recipe(L1(strength=schedule), seed=seed).attach(model, task)
    try:
        for epoch in range(epochs):
            steps = 0
            for batch in retained:
                recipe.step(batch, optimizer, progress=epoch / epochs)
                steps += 1
            if not steps:
                raise ValueError(f"epoch {epoch} found no retained batch; give a list or a loader, not an iterator")
    finally:
        recipe.detach()
    return model


@dataclass(frozen=True)
class UnlearningReport:
    """How well a model has forgotten, in points (0-100).

    Attributes:
        unlearning: 100 minus accuracy on the forgotten data.
        membership: share of the forgotten samples that an attack by confidence takes for never seen.
        retained: accuracy on the retained data.
        test: accuracy on test data.
    """

    unlearning: float
    membership: float
    retained: float
    test: float

    def gap(self, retrained: UnlearningReport) -> float:
        """Mean distance of the four numbers from those of a model that never saw the forgotten data; 0 is best.

        Every one of them can be too high as well as too low: what counts is the retrained model.
        """
        own, other = vars(self), vars(retrained)
        return sum(abs(own[key] - other[key]) for key in own) / len(own)


def unlearning_report(
    model: nn.Module, task: Task, forgotten: Iterable[Batch], retained: Iterable[Batch], test: Iterable[Batch]
) -> UnlearningReport:
    """Look at a classifier that was made to forget; compare with ``report.gap(report_of_a_retrained_model)``.

    The attack calls a sample a member of the training data if the model gives its class at least a certain probability:
    that which tells retained from test data best.

    Args:
        model: gives logits (B, C); looked at in eval mode, and left as it was.
        task: a classification with class ids.
        forgotten, retained, test: batches with the task's keys.

    Raises:
        ValueError: if one of the three is empty, or targets are not class ids.
    """
    found = {}
    for name, batches in (("forgotten", forgotten), ("retained", retained), ("test", test)):
        found[name] = _looked_at(model, task, batches, name)
    threshold = best_threshold(found["retained"][1], found["test"][1])
    right = {name: 100 * float(hit.double().mean()) for name, (hit, _) in found.items()}
    outside = 100 * float((found["forgotten"][1] < threshold).double().mean())
    return UnlearningReport(100 - right["forgotten"], outside, right["retained"], right["test"])


def best_threshold(members: Tensor, others: Tensor) -> Tensor:
    """The value from which on most members and fewest others lie: it maximises the mean of both shares told right.

    Args:
        members: (N,), others: (M,), neither empty.

    Returns:
        a scalar among the values of both; the smallest of those that are equally good.
    """
    values = torch.cat([members, others]).sort().values
    inside = 1 - torch.searchsorted(members.sort().values, values).double() / len(members)
    outside = torch.searchsorted(others.sort().values, values).double() / len(others)
    return values[(inside + outside).argmax()]


@torch.no_grad()
def _looked_at(model: nn.Module, task: Task, batches: Iterable[Batch], name: str) -> tuple[Tensor, Tensor]:
    """Whether each sample is classified right, and the probability given to its class, (N,) each."""
    hits, confidences = [], []
    with evaluating(model):
        for batch in batches:
            y = batch["y"]
            if not is_class_ids(y):
                raise ValueError("an unlearning report needs class ids as targets")
            logits = task.forward(bare(model), batch)["logits"]
            p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            hits.append(p.argmax(-1).eq(y).flatten())
            confidences.append(p.gather(-1, y.unsqueeze(-1)).flatten())
    if not hits or not sum(map(len, hits)):
        raise ValueError(f"an unlearning report needs at least one {name} sample")
    return torch.cat(hits), torch.cat(confidences)
