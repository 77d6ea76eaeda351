"""AdamW for many small runs: torch's fused kernel without the bookkeeping around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class LeanAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW(fused=True)`` bit for bit, a fifth of a small step faster.

    On nets of a few ten thousand weights, half of the time of torch's ``step`` goes into sorting parameters by device
    and dtype, copying lists and profiling. Here that happens when the set of parameters with a gradient changes. Step
    hooks do not run.

    Args:
        params: trainable parameters, floating point, dense, all on one device; a single group.
        lr: learning rate.
        weight_decay: decoupled, a share of lr.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, fused=True)
        self._ready: tuple[list[Tensor], ...] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update; a closure is refused."""
        if closure is not None:
            raise TypeError("LeanAdamW takes no closure")
        (group,) = self.param_groups
        used = [p for p in group["params"] if p.grad is not None]
        if self._ready is None or len(used) != len(self._ready[0]) or any(map(_other, used, self._ready[0])):
            super().step()  # creates what state is missing
            states = [self.state[p] for p in used]
            self._ready = (used, *([s[k] for s in states] for k in ("exp_avg", "exp_avg_sq", "step")))
            return
        _, averages, squares, steps = self._ready
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            used, [p.grad for p in used], averages, squares, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2,
            weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
        )  # fmt: skip

    step.hooked = True  # type: ignore[attr-defined]  # torch.optim wraps step in profiling unless told it has been

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer."""
        super().load_state_dict(state_dict)
        self._ready = None


def _other(a: Tensor, b: Tensor) -> bool:
    return a is not b
