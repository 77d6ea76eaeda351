"""Lazy and rich training: a dial between them, and how well a net's kernel fits its task."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import implements
from ..core.modes import evaluating
from ..parts.curvature import twice_differentiable

__all__ = ["GrokkingGap", "LazyScaling", "PolynomialStudent", "grokking_gap", "kernel_alignment", "polynomial_error"]


@implements("grokking-lazy-to-rich")
class LazyScaling(nn.Module):
    r"""Lazy scaling: a model's change since its start, times a factor that sets how far features have to move.

    Computes:
        alpha times the outputs minus those of a frozen copy of the start, so that training begins at 0. Train on
        ``factor`` times the loss: then alpha changes no speed at first, but with a large one small changes of the
        weights fit the data, the tangent kernel stays (lazy), and with a small one features must be learned (rich).
        ``kernel_alignment`` says how well the present kernel fits the labels, ``grokking_gap`` how late the test loss
        follows the training loss.

    Formula:
        f(x) = \alpha \left( g(\theta, x) - g(\theta_0, x) \right)
        L = \frac{1}{\alpha^2} \, \mathrm{MSE}(f, y)

    Helps:
        Removing grokking without weight decay: where a net fits long before it generalises, a smaller alpha makes it
        learn features sooner. A student of squares needed about three times the steps to generalise that it needed to
        fit at alpha 4, and 1.7 times at alpha 0.25.

    Avoid:
        Forgetting ``factor``: alpha would be a learning rate. Large alpha with a kernel that fits the task badly.
        Models with dropout, whose two passes drop different units, so that training does not begin at 0.

    Defaults:
        alpha 1; the paper varies it.

    Cost:
        A second forward pass, through the frozen copy, and its memory.

    Reference:
        Kumar, Bordelon, Gershman, Pehlevan 2024, Grokking as the Transition from Lazy to Rich Training Dynamics, arXiv
        2310.06110; the scaling is that of Chizat, Oyallon, Bach 2019, arXiv 1812.07956. The closed form in
        ``polynomial_error`` is derived here.

    Args:
        model: any module with one tensor as output; it is trained in place. The copy follows ``train`` and ``eval`` and
            keeps its own running statistics.
        alpha: above 0.

    Raises:
        ValueError: unless alpha is above 0.
    """

    def __init__(self, model: nn.Module, alpha: float = 1.0) -> None:
        super().__init__()
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be above 0, got {alpha:g}")
        self.model, self.alpha = model, alpha
        self.start = copy.deepcopy(model).requires_grad_(False)

    @property
    def factor(self) -> float:
        """Of the loss, 1 / alpha^2."""
        return 1 / self.alpha**2

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As of the model, whose arguments these are."""
        change: Tensor = self.model(*args, **kwargs) - self.start(*args, **kwargs)
        return self.alpha * change


# ---- diagnostics
def kernel_alignment(model: nn.Module, x: Tensor, y: Tensor, chunk: int = 64) -> Tensor:
    """Centred alignment of the tangent kernel with the targets: 1 where it is their Gram matrix, 0 where it has none.

    Inner product of the centred kernels K = J J', summed over outputs, and y y', over their Frobenius norms.

    Args:
        model: looked at in evaluation mode, where samples do not mix; plain PyTorch that ``torch.func.vmap`` can
            follow, with outputs of any shape per sample. Kernel of its trainable parameters.
        x: inputs (n, ...); some hundred are enough.
        y: targets (n,) or (n, K); of classes one-hot.
        chunk: samples whose Jacobians are computed at once. All of them are kept: n x outputs x weights numbers.

    Raises:
        ValueError: if targets are constant, or not as many as inputs.
    """
    targets = y.reshape(len(y), -1).to(torch.promote_types(y.dtype, torch.float32))
    targets = targets - targets.mean(0)
    if len(x) != len(y) or not targets.any():
        raise ValueError(f"as many targets as inputs, which vary, are needed; got {len(x)} inputs and {len(y)} targets")
    params = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    rest = {n: t for n, t in model.state_dict(keep_vars=True).items() if n not in params}

    def outputs(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model, {**rest, **weights}, (sample[None],))
        return found.flatten()

    jacobians = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))
    with evaluating(model), twice_differentiable(), torch.no_grad():
        rows = [
            torch.cat([j.flatten(1) for j in jacobians(params, part).values()], 1) for part in torch.split(x, chunk)
        ]
        features = torch.cat(rows)
        features = features - features.mean(0)
        kernel = features @ features.T
        wanted = (targets @ targets.T).to(kernel)
        tiny = torch.finfo(kernel.dtype).tiny
        return (kernel * wanted).sum() / (kernel.norm() * wanted.norm()).clamp_min(tiny)


class GrokkingGap(NamedTuple):
    """How late generalisation follows.

    Attributes:
        train, test: when the losses first fell to their thresholds; ``test`` is the last time where it never did.
        decades: log10 of test over train.
        censored: whether the test loss never fell so far, so that ``test`` and ``decades`` are lower bounds.
    """

    train: float
    test: float
    decades: float
    censored: bool


def grokking_gap(
    train: Sequence[float],
    test: Sequence[float],
    threshold: float,
    test_threshold: float | None = None,
    times: Sequence[float] | None = None,
) -> GrokkingGap:
    """When training and test loss first fell to a threshold, from their histories (of accuracies: 1 minus them).

    Args:
        train, test: one entry for each time.
        threshold: of both, or of the training loss if ``test_threshold`` is given.
        times: above 0; None: 1, 2, 3, ...

    Raises:
        ValueError: if the lengths differ, or the training loss never fell so far.
    """
    times = range(1, len(train) + 1) if times is None else times
    if not len(train) == len(test) == len(times):
        raise ValueError(f"histories of one length are needed, got {len(train)}, {len(test)} and {len(times)}")
    fitted = next((t for t, loss in zip(times, train, strict=True) if loss <= threshold), None)
    if fitted is None:
        raise ValueError(f"the training loss never fell to {threshold:g}")
    bar = threshold if test_threshold is None else test_threshold
    known = next((t for t, loss in zip(times, test, strict=True) if loss <= bar), None)
    last = times[-1] if known is None else known
    return GrokkingGap(fitted, last, math.log10(last / fitted), known is None)


# ---- a student whose test error is known
class PolynomialStudent(nn.Module):
    """Mean over units of h + epsilon h^2 / 2, h = w x: the smaller epsilon, the less its kernel knows of squares.

    Args:
        inputs: D.
        units: N.
        epsilon: share of the square.
        generator: of the standard normal weights.
    """

    def __init__(self, inputs: int, units: int, epsilon: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.randn(units, inputs, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B,)."""
        h = x @ self.weight.T
        return (h + self.epsilon / 2 * h.square()).mean(-1)


@torch.no_grad()
def polynomial_error(scaled: LazyScaling, beta: Tensor) -> Tensor:
    """Mean squared error of a scaled ``PolynomialStudent`` on (beta x)^2 / 2, over x of independent entries N(0, 1/D).

    Exact: the error is a quadratic form in x, whose second moment is known.

    Args:
        scaled: the student inside ``LazyScaling``.
        beta: (D,).
    """
    now, start = scaled.model, scaled.start
    assert isinstance(now, PolynomialStudent)
    assert isinstance(start, PolynomialStudent)
    linear = scaled.alpha * (now.weight - start.weight).mean(0)
    moments = (now.weight.T @ now.weight - start.weight.T @ start.weight) / len(now.weight)
    form = scaled.alpha * now.epsilon / 2 * moments - torch.outer(beta, beta) / 2
    quadratic = 2 * form.square().sum() + form.trace().square()
    return linear.square().sum() / len(beta) + quadratic / len(beta) ** 2
