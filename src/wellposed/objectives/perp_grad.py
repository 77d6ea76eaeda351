"""PerpGrad: the part of the gradient that turns the weights, without the part that only scales them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..core import Method, Step
from ..core.norms import global_norm

__all__ = ["PerpGrad", "nlm_alignment", "orthogonal_parts"]


@torch.no_grad()
def orthogonal_parts(
    grads: Sequence[Tensor], weights: Sequence[Tensor], rescale: bool = True, joint: bool = False
) -> list[Tensor]:
    """Gradients without their component along the weights.

    Args:
        grads, weights: tensor by tensor of the same shape.
        rescale: give the result the length the gradient had.
        joint: all tensors together are one vector; False: each is one. A tensor with a single entry, of which nothing
            would be left, then stays as it is.

    Returns:
        g - (<w, g> / <w, w>) w in the gradients' dtypes; Prieto et al. 2025 (arXiv 2501.04697), Eq. 12. What is left of
        a gradient along the weights is rounding error, and is not rescaled.

    Raises:
        ValueError: for a sparse gradient.
    """
    if any(g.layout != torch.strided for g in grads):
        raise ValueError("PerpGrad needs dense gradients; make the embedding with sparse=False")
    chosen = [i for i, g in enumerate(grads) if joint or g.numel() > 1]
    found = list(grads)
    if not chosen:
        return found
    wide = [torch.promote_types(grads[i].dtype, torch.float32) for i in chosen]
    g = [grads[i].to(dtype) for i, dtype in zip(chosen, wide, strict=True)]
    w = [weights[i].to(dtype) for i, dtype in zip(chosen, wide, strict=True)]
    along, square = _dots(w, g, joint), _dots(w, w, joint)
    share = [a / s.where(s > 0, 1) for a, s in zip(along, square, strict=True)]
    parts = list(torch._foreach_sub(g, torch._foreach_mul(w, share)))
    if rescale:
        before, after = _dots(g, g, joint), _dots(parts, parts, joint)
        torch._foreach_mul_(parts, [_ratio(b, a) for b, a in zip(before, after, strict=True)])
    for i, part in zip(chosen, parts, strict=True):
        found[i] = part.to(grads[i].dtype)
    return found


def _dots(a: Sequence[Tensor], b: Sequence[Tensor], joint: bool) -> list[Tensor]:
    """Inner products tensor by tensor, or that of all tensors at every place."""
    each = [torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]
    if not joint:
        return each
    total = torch.stack(
        [e.to(each[0].device, torch.float64 if e.device.type != "mps" else e.dtype) for e in each]
    ).sum()
    return [total.to(e) for e in each]


def _ratio(before: Tensor, after: Tensor) -> Tensor:
    """Of two lengths, from their squares; 1 where the second is rounding error."""
    noise = (16 * torch.finfo(before.dtype).eps) ** 2 * before
    return torch.where(after > noise, before / after.where(after > noise, 1), 1).sqrt()


@torch.no_grad()
def nlm_alignment(params: Iterable[Tensor]) -> Tensor:
    """Cosine between the descent direction and the weights, all parameters with a gradient as one vector.

    Near 1 training does little but scale the weights up (naive loss minimisation).

    Args:
        params: after ``backward``.

    Returns:
        a scalar in [-1, 1], 0 where there is no gradient; Prieto et al. 2025 (arXiv 2501.04697), section 5.
    """
    with_grad = [p for p in params if p.grad is not None]
    if not with_grad:
        return torch.zeros(())
    grads = [p.grad for p in with_grad if p.grad is not None]
    along = torch.stack(
        [(p.double() * g.double()).sum().to(grads[0].device) for p, g in zip(with_grad, grads, strict=True)]
    )
    lengths = global_norm(with_grad) * global_norm(grads)
    return -along.sum() / lengths.where(lengths > 0, 1)


class PerpGrad(Method, paper="stablemax-perpgrad"):
    r"""PerpGrad: descend only where the weights turn, so that the loss cannot fall by scaling them up.

    Computes:
        Each parameter tensor's gradient loses its component along the tensor and is given its old length back. List it
        first to act on the gradient the optimizer gets, penalties included.

    Formula:
        g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle} w
        g \leftarrow \frac{\lVert g \rVert}{\lVert g_\perp \rVert} g_\perp

    Helps:
        Late generalisation (grokking) without weight decay: addition modulo 43 from 75 % of the table reached 98 % on
        the rest in 300 steps, cross-entropy alone 1 %.

    Avoid:
        With weight decay, which it is in place of. Weights whose size must be learned (scales, temperatures; single
        entries are left alone). Counting on constant norms: plain SGD lets the squared norm grow by exactly the squared
        step, and Adam's rescaling puts a component along the weights back.

    Defaults:
        Tensor by tensor and rescaled, as in the released code; the formula of the paper takes all weights as one vector
        and does not rescale.

    Cost:
        One pass; four inner products and two roundings of the gradient, without waiting for the device.

    Reference:
        Prieto, Barsbey, Mediano, Birdal 2025, Grokking at the Edge of Numerical Stability, arXiv 2501.04697, section
        5.1.

    Args:
        rescale: give the gradient its length back.
        joint: all parameters are one vector, in place of each tensor.
    """

    null = None
    stops = True

    rescale: bool = True
    joint: bool = False

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        compute()
        grads, params = step.grads(), step.params()
        parts = orthogonal_parts(list(grads.values()), [params[n] for n in grads], self.rescale, self.joint)
        for grad, part in zip(grads.values(), parts, strict=True):
            grad.copy_(part)
