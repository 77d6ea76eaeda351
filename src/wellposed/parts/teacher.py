"""Teachers: a model as it was, a moving average of it, and what they say of a batch."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from ..core import Step
from ..core.parallel import bare
from ..core.task import Outputs


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that nothing trains, out of compile and DDP wrappers."""
    return deepcopy(bare(model)).eval().requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, model: nn.Module, decay: float) -> None:
    """Move a ``frozen_copy`` towards the model: weights t <- decay t + (1 - decay) w, buffers copied.

    The mean teacher of Tarvainen, Valpola 2017 (arXiv 1703.01780). Statistics of normalisation layers are averages
    already; averaging them again would lag.

    Args:
        teacher: of the model's architecture.
        model: what trains.
        decay: memory, in [0, 1]: 1 never moves, 0 copies.

    Raises:
        ValueError: for a decay outside [0, 1].
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay:g}")
    model = bare(model)
    weights = dict(model.named_parameters())
    mine = [(p, weights[n].to(p)) for n, p in teacher.named_parameters()]
    if mine:
        torch._foreach_lerp_([t for t, _ in mine], [w for _, w in mine], 1 - decay)
    for own, other in zip(teacher.buffers(), model.buffers(), strict=True):
        own.copy_(other)


@torch.no_grad()
def said(step: Step, teacher: nn.Module) -> Outputs:
    """What the teacher says of this batch, in eval mode whatever mode the recipe was put in."""
    if teacher.training:
        teacher.eval()
    return step.forward(teacher)
