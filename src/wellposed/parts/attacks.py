"""Adversarial inputs: gradient ascent of a loss in a ball around each input.

Gradients are taken of the inputs alone; the model's ``.grad`` stays untouched. What the loss function does to batch
statistics and dropout is its own affair: inside a method use ``step.forward``, which freezes them, for evaluation
``model.eval()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
Box = tuple[float, float]


@torch.no_grad()
def random_start(x: Tensor, radius: float, norm: Norm = "linf", generator: torch.Generator | None = None) -> Tensor:
    """Inputs moved to a uniform point of the ball of ``radius`` around them."""
    if norm == "linf":
        return x + radius * (2 * torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) - 1)
    _check(norm)
    drawn = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    share = torch.rand(len(x), generator=generator, device=x.device, dtype=_wide(x.dtype))
    length = radius * share ** (1 / max(1, x[0].numel()))  # volume grows with the dimension's power of the length
    return x + _rows(length, x).to(x.dtype) * _direction(drawn, "l2")


def project(moved: Tensor, x: Tensor, radius: float, norm: Norm = "linf", box: Box | None = None) -> Tensor:
    """The nearest point of the ball of ``radius`` around each ``x``; then of the box (which must hold ``x``)."""
    if norm == "linf":
        moved = moved.clamp(x - radius, x + radius)
    else:
        _check(norm)
        delta = moved - x
        length = _length(delta)
        moved = x + delta * _rows(torch.where(length > radius, radius / length, 1.0), x).to(x.dtype)
    return moved.clamp(*box) if box else moved


def fgsm(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    radius: float,
    *,
    size: float | None = None,
    norm: Norm = "linf",
    box: Box | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The fast gradient method: one step of ascent.

    RS-FGSM is a random start in the ball and size 1.25 radius (Wong et al. 2020); N-FGSM is fgsm around x plus noise
    (de Jorge et al. 2022).

    Args:
        loss: of inputs shaped like ``x``, one value per sample or their sum; what is climbed.
        x: (B, ...), floating point.
        radius: of the ball, in units of the input.
        size: length of the step; default the radius.
        norm: of the ball, "linf" or "l2" of each sample.
        box: lowest and highest legal input, if any.
        start: where the gradient is taken; default ``x``.

    Returns:
        shaped like ``x``, no gradient; Goodfellow, Shlens, Szegedy 2015 (arXiv 1412.6572).
    """
    return pgd(loss, x, radius, 1, size=radius if size is None else size, norm=norm, box=box, start=start)


def pgd(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    radius: float,
    steps: int = 10,
    *,
    size: float | None = None,
    norm: Norm = "linf",
    box: Box | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Projected gradient ascent: steps of fixed length, each followed by the projection onto ball and box.

    Args:
        loss: of inputs shaped like ``x``, one value per sample or their sum; what is climbed. A targeted attack climbs
            the negative loss of its target.
        x: (B, ...), floating point.
        radius: of the ball, in units of the input.
        steps: forward passes with a gradient of the input, at least 1.
        size: length of a step; default 2.5 radius / steps, which reaches the border from anywhere.
        norm: of the ball, "linf" or "l2" of each sample. Where a gradient is zero the input stays.
        box: lowest and highest legal input, if any.
        start: first point, see ``random_start``; default ``x``, which is a saddle of losses that compare with
            the prediction at ``x``.

    Returns:
        the last point, shaped like ``x``, no gradient; Madry et al. 2018 (arXiv 1706.06083), Eq. 2.1.

    Raises:
        ValueError: for fewer than one step, a negative radius or another norm.
    """
    _check(norm)
    if steps < 1:
        raise ValueError(f"an attack takes at least 1 step, got {steps}")
    if radius < 0:
        raise ValueError(f"the radius of an attack must be at least 0, got {radius:g}")
    size = 2.5 * radius / steps if size is None else size
    x = x.detach()
    moved = x if start is None else project(start.detach(), x, radius, norm, box)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(loss(moved).sum(), moved)
        moved = project(moved.detach() + size * _direction(slope, norm), x, radius, norm, box)
    return moved


def _direction(slope: Tensor, norm: Norm) -> Tensor:
    """The unit step of steepest ascent; zero where the slope is."""
    if norm == "linf":
        return slope.sign()
    length = _length(slope)
    return (slope * _rows(torch.where(length > 0, 1 / length, 0.0), slope)).to(slope.dtype)


def _length(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=_wide(rows.dtype))


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check(norm: str) -> None:
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}")
