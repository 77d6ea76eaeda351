"""The value of a transport problem, with the gradients that its solution holds: no solver is differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def transport_value(value: Tensor, cost: Tensor, a: Tensor, b: Tensor, plan: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """``value``, whose gradients in cost, a and b are the plan and the potentials f and g (envelope theorem).

    Args:
        value: of the dual at its maximum, (...).
        cost: (..., n, m); the result has its dtype.
        a, b: weights that broadcast to (..., n) and (..., m).
        plan, f, g: the solution, constants.
    """
    found: Tensor = _Value.apply(cost, a, b, value, plan, f, g)  # type: ignore[no-untyped-call]
    return found


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, a: Tensor, b: Tensor, value: Tensor, plan: Tensor, f: Tensor, g: Tensor
    ) -> Tensor:
        ctx.save_for_backward(plan, f, g)
        ctx.like = cost, a, b
        return value.to(cost.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        plan, f, g = ctx.saved_tensors
        out = grads[0].unsqueeze(-1)
        by = [
            (out_ * part).sum_to_size(given.shape).to(given.dtype)
            for out_, part, given in zip((out.unsqueeze(-1), out, out), (plan, f, g), ctx.like, strict=True)
        ]
        return *by, None, None, None, None
