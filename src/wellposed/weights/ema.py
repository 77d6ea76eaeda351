"""Averages of the weights over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ._snapshot import Snapshot

__all__ = ["EMA", "ema_decay"]


def ema_decay(decay: float, updates: int, warm_up: bool) -> float:
    """min(decay, (1 + updates) / (10 + updates)) with ``warm_up``, else ``decay``."""
    return min(decay, (1 + updates) / (10 + updates)) if warm_up else decay


class EMA(Method):
    r"""Exponential moving average of the weights, evaluated and shipped instead of the last ones.

    Computes:
        After every update avg <- decay avg + (1 - decay) w over trainable parameters, beginning with the weights after
        the first one. Training does not see it. Buffers (batch statistics) are not averaged: the model's own are
        shipped.

    Formula:
        \bar w \leftarrow d \, \bar w + (1 - d) \, w
        d_{\mathrm{warm}} = \min \left( d, \frac{1 + t}{10 + t} \right)

    Helps:
        Noise of the last steps: wrong labels +9.6 points at 0.999 and +3.1 at 0.99 on 600 digits with 40 % of them
        wrong.

    Avoid:
        Short training with a long memory: an average over 1 / (1 - decay) updates lags behind (its test loss got worse
        at 0.999 although accuracy rose). warm_up lessens the lag, and on that problem most of the gain. Batch
        statistics belong to the last weights, not to the average: with BatchNorm let a few batches pass in training
        mode before shipping if it matters.

    Defaults:
        decay 0.999 without warm-up; 0.9999 is usual for 100,000 updates and more.

    Cost:
        One pass; one copy of the weights (in at least float32), one reading of both.

    Reference:
        Polyak, Juditsky 1992, Acceleration of Stochastic Approximation by Averaging, SIAM J. Control Optim. 30; the
        warm-up is that of TensorFlow's ExponentialMovingAverage.

    Args:
        decay: memory, in [0, 1].
        warm_up: shorter memory in the first updates.
    """

    null = {"decay": 0.0}

    decay: float = knob(0.999, low=0.0, high=1.0, grid=(0.99, 0.999))
    warm_up: bool = False

    def setup(self, model: nn.Module, task: Task) -> None:
        self.updates = 0
        self.average = Snapshot(next(model.parameters()).device)

    @torch.no_grad()
    def update(self, step: Step) -> None:
        average, params = self.average.tensors(), step.params()
        if average:
            now = [params[n].to(a.dtype) for n, a in average.items()]
            torch._foreach_lerp_(list(average.values()), now, 1 - ema_decay(self.decay, self.updates, self.warm_up))
        else:
            self.average.write({n: p.to(torch.promote_types(p.dtype, torch.float32)) for n, p in params.items()})
        self.updates += 1

    def evaluation_state(self) -> Mapping[str, Tensor]:
        return self.average.tensors()

    def teardown(self, model: nn.Module) -> None:
        self._modules.pop("average", None)

    def get_extra_state(self) -> dict[str, Any]:
        """The number of averaged updates, for the warm-up."""
        return {"updates": getattr(self, "updates", 0)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.updates = state["updates"]
