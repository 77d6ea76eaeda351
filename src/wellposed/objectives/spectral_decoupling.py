"""Spectral decoupling: a penalty on the logits against gradient starvation."""

from __future__ import annotations

from torch import Tensor

from ..core import Method, Step, knob
from ..core.schedules import Scalar

__all__ = ["SpectralDecoupling", "squared_logits"]


def squared_logits(logits: Tensor, target: Tensor | float = 0.0) -> Tensor:
    """Half the squared distance of each prediction's logits from a target.

    Args:
        logits: (..., C).
        target: broadcasts to the logits: a number, one for each class (C,), or one for each sample (..., 1), as
            the paper's targets by class are.

    Returns:
        ||f - target||^2 / 2, shape (...); Pezeshki et al. 2020 (arXiv 2011.09468), section 3.
    """
    return (logits - target).square().sum(-1) / 2


class SpectralDecoupling(Method, paper="spectral-decoupling"):
    r"""Spectral decoupling: small logits keep one strong feature from starving the others of gradient.

    Computes:
        strength / 2 times the squared norm of each prediction's logits, in place of weight decay. Cross-entropy stops
        learning from an example once any feature explains it; with this penalty every example keeps a gradient until
        its own logits sit where slope of the loss and of the penalty cancel. With several true classes (multihot) the
        mean over logits, as in that loss.

    Formula:
        L = \frac{1}{n} \sum_i \log\left(1 + e^{-y_i f_i}\right) + \frac{\lambda}{2 n} \sum_i f_i^2
        \sigma(-y_i f_i^*) = \lambda \, y_i f_i^* \quad \text{for every } i, \text{ whatever the features}

    Helps:
        Where an easy feature explains the training data and others are needed later: on moons that a shift makes
        linearly separable the boundary still bends (a gain of about four points on unshifted moons).

    Avoid:
        Together with weight decay, which it replaces. Where probabilities are used: logits are held small (on the moons
        at strength 1 confidence fell short by 37 points). Expecting it to divide credit between features where not
        every example can reach its target: with more examples than dimensions and one noise-free feature it drove the
        weight of a second one to exactly 0, which cross-entropy alone did not.

    Defaults:
        strength 0.1, inside the paper's range (0.001 to 0.1, by task); 1 did as well on two moons.

    Cost:
        One pass.

    Reference:
        Pezeshki, Kaba, Bengio, Courville, Precup, Lajoie 2020, Gradient Starvation: A Learning Proclivity in Neural
        Networks, arXiv 2011.09468, section 3. The paper has one logit f. Of softmax logits all are penalised: with two
        classes that is the penalty on their difference at half the strength. The fixed point needs features of full
        row rank.

    Args:
        strength: lambda of the paper.
    """

    reads = ("logits",)
    targets = frozenset({"class", "multihot", "token"})

    strength: Scalar = knob(0.1, low=0.0, grid=(0.01, 0.1, 1.0), log=True)

    def penalty(self, step: Step) -> Tensor:
        values = squared_logits(step.out["logits"])
        if step.task.target == "multihot":
            values = values / step.out["logits"].shape[-1]
        return step.task.reduce(values, step.batch)
