"""Tent: adapt to the test data by trusting oneself a little more."""

from __future__ import annotations

from torch import Tensor, nn

from ..core.citing import implements
from ..tasks.targets import conditional_entropy
from ._online import MakeOptimizer, OnlineAdaptation

__all__ = ["Tent"]


@implements("tent")
class Tent(OnlineAdaptation):
    r"""Tent: normalise by the test batch, and minimise the entropy of its predictions.

    ``adapted = Tent(model)``, then ``logits = adapted(x)`` for every test batch, and ``adapted.finish()`` at the end.

    Computes:
        BatchNorm layers use the statistics of the batch at hand; after each prediction one gradient step on the mean
        entropy of the predictions moves the scales and shifts of the normalisation layers, and nothing else. What is
        returned is what was predicted before the step.

    Formula:
        L = \frac{1}{B} \sum_{i=1}^{B} H(p_i), \quad H(p) = - \sum_c p_c \log p_c

    Helps:
        A trained model meets corrupted or shifted inputs, in batches, and nobody has labels. On noisy, blurred or faded
        digits nearly all of the gain is due to the statistics of the batch; the entropy adds half a point to it.

    Avoid:
        With single images or batches of one class: the batch's statistics are then those of the class. On long streams,
        where the entropy can collapse to one class (see EATA). Models without BatchNorm gain less: only scales and
        shifts adapt.

    Defaults:
        Adam, lr 0.001, as for CIFAR (ImageNet: SGD, lr 0.00025, momentum 0.9), one step, no reset between batches.

    Cost:
        One forward and backward a batch, where prediction is one forward.

    Reference:
        Wang, Shelhamer, Liu, Olshausen, Darrell 2021, Tent: Fully Test-time Adaptation by Entropy Minimization, arXiv
        2006.10726, Section 3. The authors' code puts the whole model into train mode; here dropout stays off.

    Args:
        model: a classifier with normalisation layers, trained; (B, ...) to logits (B, C).
        lr: of Adam.
        steps: updates a batch, at least 1; the logits are those before the last.
        episodic: whether every batch starts from the source model.
        optimizer: makes another optimizer of the parameters: ``partial(torch.optim.SGD, lr=2.5e-4, momentum=0.9)``.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        steps: int = 1,
        episodic: bool = False,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        super().__init__(model, lr, steps, episodic, optimizer)

    def objective(self, logits: Tensor) -> Tensor:
        """Mean entropy."""
        return conditional_entropy(logits).mean()
