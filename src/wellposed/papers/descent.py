"""How many updates an optimizer needs to solve a small problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Problem = Callable[[], tuple[nn.Parameter, Callable[[], Tensor]]]
Make = Callable[[list[nn.Parameter], Any], torch.optim.Optimizer]


def rates(low: int, high: int, a_decade: int = 4) -> list[float]:
    """Learning rates from 10^low to 10^high, evenly spaced in their logarithm."""
    return [10 ** (k / a_decade) for k in range(low * a_decade, high * a_decade + 1)]


def log_updates(problem: Problem, make: Make, lrs: Sequence[float], goal: float, limit: int) -> float:
    """log2 of the updates until the loss is ``goal`` times its first value, at the best rate; at most of ``limit``.

    Args:
        problem: gives a fresh parameter and the function that computes its loss.
        make: an optimizer with a learning rate.
        lrs: rates to try.
        goal: relative loss.
        limit: updates at most.
    """
    best = limit
    for lr in lrs:
        weight, compute = problem()
        optimizer = make([weight], lr)
        backward = getattr(optimizer, "backward", torch.autograd.backward)
        first = None
        for step in range(best):
            optimizer.zero_grad()
            loss = compute()
            value = float(loss.detach())
            first = first or value
            if value <= goal * first:
                best = step
                break
            backward(loss)
            optimizer.step()
    return math.log2(best)
