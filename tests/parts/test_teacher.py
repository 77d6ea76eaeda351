"""Teachers: frozen copies and moving averages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wellposed.parts.teacher import follow, frozen_copy


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


def test_a_copy_is_frozen_and_apart() -> None:
    model = net().train()
    copy = frozen_copy(model)
    assert not copy.training
    assert model.training
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model[0].weight.zero_()
    assert copy.get_parameter("0.weight").abs().sum() > 0


def test_weights_average_and_statistics_are_copied() -> None:
    model = net()
    teacher = frozen_copy(model)
    first = {n: p.clone() for n, p in teacher.named_parameters()}
    expected = dict(first)
    for step in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * step)
        model(torch.randn(8, 3))
        follow(teacher, model, 0.9)
        expected = {n: 0.9 * e + 0.1 * model.get_parameter(n).detach() for n, e in expected.items()}
    for n, p in teacher.named_parameters():
        torch.testing.assert_close(p, expected[n])
        assert not torch.equal(p, first[n])
    for a, b in zip(teacher.buffers(), model.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_ends_of_the_range() -> None:
    model = net()
    teacher = frozen_copy(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    before = teacher.get_parameter("0.weight").clone()
    follow(teacher, model, 1.0)
    assert torch.equal(teacher.get_parameter("0.weight"), before)
    follow(teacher, model, 0.0)
    torch.testing.assert_close(teacher.get_parameter("0.weight"), model[0].weight.detach())
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 2"):
        follow(teacher, model, 2.0)
