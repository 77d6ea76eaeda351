"""Early-learning regularization against wrong labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, PerSample, Step, Task, knob
from ..core.schedules import Scalar

__all__ = ["ELR", "elr_penalty"]


def elr_penalty(probs: Tensor, target: Tensor) -> Tensor:
    """log(1 - <p, t>) of each sample.

    Args:
        probs: clipped predicted probabilities p, (B, C).
        target: running averages t of past predictions, (B, C), no gradient.

    Returns:
        shape (B,), at most 0; Liu et al. 2020 (arXiv 2007.00151), Eq. 6.
    """
    return torch.log1p(-(target * probs).sum(-1))


class ELR(Method, paper="elr"):
    r"""Early-learning regularization: hold on to what the net believed before it began to memorise.

    Computes:
        Per training example a running average t of predicted probabilities, t <- beta t + (1 - beta) p with p clipped
        to [1e-4, 1 - 1e-4] and renormalised, and the penalty strength * log(1 - <p, t>), which keeps gradients of
        clean examples alive and cancels those of wrong labels.

    Formula:
        t \leftarrow \beta t + (1 - \beta) \frac{\bar p}{\lVert \bar p \rVert_1}
        \bar p = \min(\max(p, 10^{-4}), 1 - 10^{-4})
        \lambda \log (1 - \langle \bar p, t \rangle)

    Helps:
        When part of the training labels is wrong and the net is large enough to memorise them.

    Avoid:
        With clean labels and little training (targets are early guesses), with batches that carry no stable
        ``index`` per example, or together with mixing of samples, whose mixtures are not the stored examples.

    Defaults:
        strength 3, beta 0.7: the paper's for CIFAR-10 (7 and 0.9 for CIFAR-100).

    Cost:
        One pass; rows x classes numbers of memory.

    Reference:
        Liu, Niles-Weed, Razavian, Fernandez-Granda 2020, Early-Learning Regularization Prevents Memorization of Noisy
        Labels, arXiv 2007.00151, Eqs. 6 and 9. ELR+ (two nets, weight averaging, mixup) is a composition, not built in.

    Args:
        rows: number of training examples; ``batch["index"]`` is in 0 ... rows - 1.
        classes: number of classes.
        beta: memory of the running average, in [0, 1]; at 1 nothing is ever learned from, and the penalty is 0.
        strength: factor of the penalty.
    """

    reads = ("logits", "index")
    targets = frozenset({"class"})
    stops = True  # the target holds today's prediction, detached
    example = {"rows": 12, "classes": 3}

    rows: int = knob(low=1)
    classes: int = knob(low=2)
    beta: float = knob(0.7, low=0.0, high=1.0)
    strength: Scalar = knob(3.0, low=0.0, grid=(1.0, 3.0, 7.0))

    def setup(self, model: nn.Module, task: Task) -> None:
        self.memory = PerSample(self.rows, self.classes).to(next(model.parameters()).device)

    def penalty(self, step: Step) -> Tensor:
        logits, index = step.out["logits"], step.batch["index"]
        wide = torch.promote_types(logits.dtype, torch.float32)  # in bfloat16 1 - 1e-4 is 1, and log(1 - 1) infinite
        probs = F.softmax(logits, -1, dtype=wide).clamp(1e-4, 1 - 1e-4)
        if step.first:
            now = probs.detach()
            now = now / now.sum(-1, keepdim=True)
            self.memory.write(index, torch.lerp(now, self.memory.read(index).to(now), self.beta))
        return elr_penalty(probs, self.memory.read(index).to(probs))
