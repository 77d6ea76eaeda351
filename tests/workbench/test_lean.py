"""The lean optimizer is torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from wellposed.workbench.lean import LeanAdamW


def train(model: nn.Sequential, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for i in steps:
        g = torch.Generator().manual_seed(i)
        x = torch.randn(8, 6, generator=g)
        optimizer.zero_grad()
        first, second = model[0], model[1]
        (
            first(x) if i % 4 == 3 else second(first(x))
        ).square().mean().backward()  # now and then a layer without gradient
        optimizer.step()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_torch_bit_for_bit(decay: float) -> None:
    ours, theirs = net(), net()
    train(ours, LeanAdamW(ours.parameters(), lr=0.01, weight_decay=decay), range(12))
    train(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=decay, fused=True), range(12))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_goes_on_from_a_state() -> None:
    straight, first = net(), net()
    train(straight, LeanAdamW(straight.parameters(), lr=0.01), range(10))
    before = LeanAdamW(first.parameters(), lr=0.01)
    train(first, before, range(5))
    second = copy.deepcopy(first)
    after = LeanAdamW(second.parameters(), lr=0.5)
    after.step()  # nothing to do, and nothing kept
    after.load_state_dict(before.state_dict())
    train(second, after, range(5, 10))
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_closures_are_refused() -> None:
    with pytest.raises(TypeError, match="takes no closure"):
        LeanAdamW(net().parameters(), lr=0.01).step(lambda: 0.0)
