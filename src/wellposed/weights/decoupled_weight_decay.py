"""Weight decay apart from the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core import Method, Step, Task, knob
from ..core.schedules import SCHEDULES, Scalar, _Schedule
from ._decayed import check_decayed, decayed

__all__ = ["CosineRestarts", "DecoupledWeightDecay", "no_decay_groups", "normalized_weight_decay"]


def normalized_weight_decay(normalized: float, batch: int, rows: int, epochs: float, lr: float) -> float:
    """The strength that a decay normalised for the length of training stands for.

    Args:
        normalized: the paper's lambda_norm, 0.025 to 0.05 for its image nets.
        batch: samples per update.
        rows: number of training samples.
        epochs: passes over them.
        lr: base learning rate.

    Returns:
        lambda_norm sqrt(batch / (rows epochs)) / lr; Loshchilov, Hutter 2019 (arXiv 1711.05101), Appendix B.1, divided
        by lr because the paper's decay is not multiplied by it, while that of PyTorch and of this module is.
    """
    if min(batch, rows, epochs, lr) <= 0:
        raise ValueError(
            "normalized_weight_decay needs positive batch, rows, epochs and lr, "
            f"got {batch}, {rows}, {epochs:g} and {lr:g}"
        )
    return normalized * math.sqrt(batch / (rows * epochs)) / lr


def no_decay_groups(model: nn.Module, weight_decay: float, no_decay: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer: decay for weights, none for biases, norms and ``no_decay``.

    Args:
        model: its trainable parameters are taken, tied ones once.
        weight_decay: for parameters of two or more dimensions.
        no_decay: patterns of names to except, such as ``"embed.*"``.
    """
    check_decayed("no_decay_groups", model, no_decay)
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with_decay = decayed(params, no_decay)
    chosen = set(map(id, with_decay))
    return [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": [p for p in params.values() if id(p) not in chosen], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class CosineRestarts(_Schedule):
    """``cycles`` half cosines from ``start`` to ``stop``, each ``factor`` times as long as the one before.

    Loshchilov, Hutter 2017 (SGDR, arXiv 1608.03983), Eq. 5; training ends with the last cycle.
    """

    start: float
    stop: float = 0.0
    cycles: int = 3
    factor: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cycles < 1 or self.factor <= 0:
            raise ValueError(
                f"CosineRestarts needs at least one cycle and a positive factor, got {self.cycles} and {self.factor:g}"
            )

    def __call__(self, progress: float) -> float:
        lengths = [self.factor**i for i in range(int(self.cycles))]
        here = progress * sum(lengths)
        for length in lengths[:-1]:
            if here < length:
                break
            here -= length
        else:
            length = lengths[-1]
        share = min(here / length, 1.0)
        return self.stop + (self.start - self.stop) * 0.5 * (1 + math.cos(math.pi * share))


SCHEDULES["CosineRestarts"] = CosineRestarts


class DecoupledWeightDecay(Method, paper="adamw-decoupled-weight-decay"):
    r"""Decoupled weight decay: shrink weights by a factor, apart from the gradient's step.

    Computes:
        theta <- (1 - lr strength) theta right before the optimizer's step, lr being that of the parameter's group. With
        Adam this is AdamW to the bit; it works with any optimizer. A penalty inside Adam would be divided by the
        gradient's size: weights with gradients s times as large would decay s times less.

    Formula:
        \theta \leftarrow (1 - \eta \lambda) \, \theta - \eta u, \qquad u \; \text{the optimizer's step}

    Helps:
        Wrong labels and too large nets: +18 points on 600 digits with 40 % wrong labels at strength 1. Groks modular
        addition at strength 1.

    Avoid:
        Beside an optimizer that decays by itself (its ``weight_decay`` must be 0), and with norm losses on the same
        weights. It was not better than an L2 penalty tuned on the same small net, nor was its best strength less
        dependent on the learning rate there.

    Defaults:
        strength 0.01, PyTorch's; small nets on little data wanted 0.1 to 1. ``normalized_weight_decay`` translates the
        paper's normalised 0.025 to 0.05. Parameters of two or more dimensions only, so no biases and norms.

    Cost:
        One pass; one scaling of the weights.

    Reference:
        Loshchilov, Hutter 2019, Decoupled Weight Decay Regularization, arXiv 1711.05101, Algorithm 2. There the decay
        is multiplied by the schedule only; here, as in PyTorch, by the group's whole learning rate.

    Args:
        strength: decay per unit of learning rate, a number or a schedule.
        no_decay: patterns of parameter names to leave alone, such as ``("embed.*",)``.
    """

    strength: Scalar = knob(0.01, low=0.0, grid=(0.01, 0.1, 1.0), log=True)
    no_decay: Sequence[str] = ()

    def setup(self, model: nn.Module, task: Task) -> None:
        check_decayed("DecoupledWeightDecay", model, self.no_decay)

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        compute()
        if strength := step.at(self.strength):
            step.defer(self, partial(self._shrink, step, strength))

    @torch.no_grad()
    def _shrink(self, step: Step, strength: float) -> None:
        assert step.optimizer is not None
        chosen = set(map(id, decayed(step.params(), self.no_decay)))
        for group in step.optimizer.param_groups:
            weights = [p for p in group["params"] if id(p) in chosen and p.grad is not None]
            if weights:
                torch._foreach_mul_(weights, 1 - group["lr"] * strength)
