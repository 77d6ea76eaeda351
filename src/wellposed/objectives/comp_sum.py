"""Comp-sum losses: cross-entropy, generalised cross-entropy and mean absolute error as one family."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Method, Step, knob
from ..tasks.targets import cross_entropy, is_class_ids

__all__ = [
    "CompSum",
    "GeneralizedCrossEntropy",
    "MeanAbsoluteError",
    "adversarial_comp_sum_loss",
    "comp_sum_loss",
    "h_consistency_bound",
]


def comp_sum_loss(logits: Tensor, y: Tensor, tau: float = 1.0) -> Tensor:
    """Phi_tau of the summed exponential margins, (p_y^(tau - 1) - 1) / (1 - tau).

    tau = 0 is the sum-exponential loss 1/p - 1, 1 the cross-entropy, between 1 and 2 the generalised cross-entropy
    with q = tau - 1, and 2 the mean absolute error 1 - p. Its gradient is that of the cross-entropy times p_y^(tau-1).

    Args:
        logits: (..., C).
        y: class ids (...) or distributions (..., C), over which the loss is averaged.
        tau: at least 0.

    Returns:
        shape (...); Mao, Mohri, Zhong 2023 (arXiv 2304.07288), section 2.

    Raises:
        ValueError: if tau is negative.
    """
    if not tau >= 0:
        raise ValueError(f"comp_sum_loss needs tau of at least 0, got {tau:g}")
    if is_class_ids(y):
        return _phi(cross_entropy(logits, y), tau)
    return (_phi(-F.log_softmax(logits, -1), tau) * y).sum(-1)


def _phi(ce: Tensor, tau: float) -> Tensor:
    """Phi_tau as a function of log(1 + u), the cross-entropy; expm1 keeps it exact for every tau near 1."""
    return ce if tau == 1 else torch.expm1((1 - tau) * ce) / (1 - tau)


def h_consistency_bound(surrogate_gap: Tensor | float, tau: float, classes: int) -> Tensor:
    """How much 0-1 error a given excess of the comp-sum loss can hide.

    Args:
        surrogate_gap: expected loss minus the best possible one, plus the minimizability gap; any shape, at least 0.
        tau: of the loss, at least 0.
        classes: number of classes n, at least 2.

    Returns:
        Gamma_tau(gap) in [0, 1], float64, same shape: an upper bound of the excess 0-1 error plus its minimizability
        gap. Mao et al. 2023 (arXiv 2304.07288), section 3. Tight for tau <= 1; for 1 < tau <= 2 it would still
        hold of (2/n)^(tau - 1) times the gap in the tightest problem found, so it is tight for two classes only.

    Raises:
        ValueError: if tau, classes or a gap is out of range.
    """
    gap = torch.as_tensor(surrogate_gap, dtype=torch.float64)
    if not tau >= 0 or classes < 2:
        raise ValueError(f"h_consistency_bound needs tau >= 0 and at least 2 classes, got {tau:g} and {classes}")
    if not (gap >= 0).all():
        raise ValueError("h_consistency_bound needs gaps of at least 0")
    if tau >= 2:
        return (gap * (tau - 1) * float(classes) ** (tau - 1)).clamp(max=1.0)
    low, high = torch.zeros_like(gap), torch.ones_like(gap)
    for _ in range(60):  # the transform rises on [0, 1]: halve until float64 is exhausted
        middle = (low + high) / 2
        below = _transform(middle, tau, classes) < gap
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


def _transform(e: Tensor, tau: float, n: int) -> Tensor:
    """T_tau, the inverse of Gamma_tau: the least excess loss with which the excess 0-1 error is ``e``, for tau < 2."""
    if tau == 1:
        return (torch.special.xlogy(1 + e, 1 + e) + torch.special.xlogy(1 - e, 1 - e)) / 2
    power = 1 / (2 - tau)
    change = torch.expm1((((1 + e) ** power + (1 - e) ** power) / 2).log() / power)
    return 2 ** (1 - tau) / (tau - 1) * change if tau < 1 else change / ((tau - 1) * n ** (tau - 1))


def adversarial_comp_sum_loss(
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    tau: float = 1.0,
    rho: float = 1.0,
    nu: float = 1.0,
    steps: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Smooth adversarial comp-sum loss: robust training without a loss at the attacked point.

    The supremum is sought by projected sign-gradient ascent from a random start in the box |x' - x| <= radius, with
    steps of 2.5 radius / steps.

    Args:
        predict: logits (B, C) of inputs; freeze batch statistics in it.
        x: inputs (B, ...), floating point.
        y: class ids (B,).
        radius: largest change of one input value, above 0.
        tau: of the comp-sum loss, at least 0.
        rho: scale of the margins, above 0.
        nu: factor of the term that keeps score differences stable, at least 0.
        steps: of the ascent, at least 1.
        generator: of the random start.

    Returns:
        comp_sum_loss(h / rho) + nu sup_x' ||D(x') - D(x)||_2 with D = (h_y - h_j)_j, shape (B,);
        Mao et al. 2023 (arXiv 2304.07288), section 5.

    Raises:
        ValueError: if a setting is out of range.
    """
    if not (radius > 0 and rho > 0 and nu >= 0 and steps >= 1):
        raise ValueError(
            "adversarial_comp_sum_loss needs radius > 0, rho > 0, nu >= 0 and steps >= 1, "
            f"got {radius:g}, {rho:g}, {nu:g} and {steps}"
        )
    clean = predict(x)

    def margins(logits: Tensor) -> Tensor:
        return logits.gather(-1, y.unsqueeze(-1)) - logits

    at_x = margins(clean.detach())
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    moved = x.detach() + radius * (2 * noise - 1)
    for _ in range(steps):
        moved.requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad((margins(predict(moved)) - at_x).square().sum(), moved)
        moved = moved.detach() + 2.5 * radius / steps * slope.sign()
        moved = x.detach() + (moved - x.detach()).clamp(-radius, radius)
    change = torch.linalg.vector_norm(margins(predict(moved)) - margins(clean), dim=-1)
    return comp_sum_loss(clean / rho, y, tau) + nu * change


class CompSum(Method, paper="comp-sum-losses"):
    r"""Comp-sum loss: one knob from cross-entropy to mean absolute error.

    Computes:
        In place of the cross-entropy (p_y^(tau-1) - 1) / (1 - tau), whose gradient is that of the cross-entropy times
        p_y^(tau-1): above 1 examples that the net disbelieves count less, below 1 they count more.

    Formula:
        \ell_\tau = \frac{p_y^{\tau - 1} - 1}{1 - \tau}, \qquad \ell_1 = -\log p_y
        \nabla \ell_\tau = p_y^{\tau - 1} \, \nabla \ell_1

    Helps:
        Wrong labels with tau between 1.5 and 1.8: digits with 40 % wrong +20 points at 1.7. It comes with a bound on
        the 0-1 error for every tau (``h_consistency_bound``).

    Avoid:
        tau near 2 with many classes or a fresh net, whose gradients vanish; tau below 1 with wrong labels, where the
        loss of a disbelieved example grows as 1 / p and overflows. At 40 % wrong labels the gain at the last epoch
        merely matches early stopping.

    Defaults:
        tau 1.5, inside the range (1 to 2) in which the family is robust; the paper compares 0 to 2 and names no winner
        for noisy labels.

    Cost:
        One pass.

    Reference:
        Mao, Mohri, Zhong 2023, Cross-Entropy Loss Functions: Theoretical Analysis and Applications, arXiv 2304.07288,
        sections 2 and 3. The bound's tightness for more than two classes is weaker than stated; see
        ``h_consistency_bound``. The adversarial form is the function ``adversarial_comp_sum_loss``.

    Args:
        tau: at least 0; 1 is cross-entropy, 2 mean absolute error.
    """

    reads = ("logits", "y")
    replaces = True
    targets = frozenset({"class", "token"})
    null = {"tau": 1.0}

    tau: float = knob(1.5, low=0.0, grid=(0.5, 1.5, 1.7))

    def loss(self, loss: Tensor, step: Step) -> Tensor:
        return _replaced(loss, step, self.tau)


class GeneralizedCrossEntropy(Method):
    r"""Generalised cross-entropy: between cross-entropy and mean absolute error.

    Computes:
        In place of the cross-entropy (1 - p_y^q) / q, whose gradient is that of the cross-entropy times p_y^q: examples
        that the net disbelieves, wrongly labelled ones among them, count less.

    Formula:
        \ell_q = \frac{1 - p_y^q}{q}, \qquad \ell_0 = -\log p_y

    Helps:
        Wrong labels: digits with 40 % wrong +20 points at q 0.7.

    Avoid:
        Many classes with q near 1, where a fresh net hardly learns, and clean labels. At 40 % wrong labels the gain at
        the last epoch merely matches early stopping.

    Defaults:
        q 0.7, the paper's throughout.

    Cost:
        One pass.

    Reference:
        Zhang and Sabuncu 2018, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels,
        arXiv 1805.07836, Eq. 6. The truncated form is not built in. The comp-sum loss with tau = 1 + q.

    Args:
        q: in [0, 1]; 0 is cross-entropy, 1 mean absolute error.
    """

    reads = ("logits", "y")
    replaces = True
    targets = frozenset({"class", "token"})
    null = {"q": 0.0}

    q: float = knob(0.7, low=0.0, high=1.0, grid=(0.4, 0.7, 0.9))

    def loss(self, loss: Tensor, step: Step) -> Tensor:
        return _replaced(loss, step, 1 + self.q)


class MeanAbsoluteError(Method):
    r"""Mean absolute error of the predicted probabilities: the loss that symmetric label noise cannot mislead.

    Computes:
        In place of the cross-entropy 1 - p_y, half the L1 distance between prediction and one-hot target. Summed over
        all labels it is constant, which is why evenly wrong labels leave its minimiser unchanged.

    Formula:
        \ell = 1 - p_y = \frac{1}{2} \lVert e_y - p \rVert_1

    Helps:
        Many wrong labels spread evenly over few classes.

    Avoid:
        More than about ten classes, short training or a small learning rate: its gradient carries the factor p_y, so a
        fresh net learns slowly and may leave whole classes out.

    Defaults:
        None: there is nothing to set. Learning rates may need to be larger than for cross-entropy.

    Cost:
        One pass.

    Reference:
        Ghosh, Kumar, Sastry 2017, Robust Loss Functions under Label Noise for Deep Neural Networks, arXiv 1712.09482,
        section 3. The comp-sum loss with tau = 2, and generalised cross-entropy with q = 1.
    """

    reads = ("logits", "y")
    replaces = True
    targets = frozenset({"class", "token"})
    null = None

    def loss(self, loss: Tensor, step: Step) -> Tensor:
        return _replaced(loss, step, 2.0)


def _replaced(loss: Tensor, step: Step, tau: float) -> Tensor:
    if tau == 1:
        return loss
    return step.task.reduce(comp_sum_loss(step.out["logits"], step.batch["y"], tau), step.batch)
