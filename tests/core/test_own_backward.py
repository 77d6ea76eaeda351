"""Optimizers that differentiate the objective themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp


class Counting(torch.optim.SGD):
    """Plain descent that is handed the objective in place of its gradient."""

    seen = 0

    def backward(self, loss: Tensor) -> None:
        self.seen += 1
        torch.autograd.backward(loss)


def step(optimizer_of: type[torch.optim.Optimizer], **attach: object) -> tuple[Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    recipe = wp.Recipe(wp.SAM()).attach(model, wp.Classify(classes=3), **attach)  # type: ignore[arg-type]
    optimizer = optimizer_of(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    g = torch.Generator().manual_seed(1)
    batch = {"x": torch.randn(4, 6, generator=g), "y": torch.arange(4) % 3}
    recipe.step([batch, batch], optimizer)
    return model.weight.detach(), optimizer


def test_it_is_handed_every_microbatch_of_every_pass() -> None:
    plain, _ = step(torch.optim.SGD)
    own, optimizer = step(Counting)
    assert torch.equal(plain, own)
    assert isinstance(optimizer, Counting)
    assert optimizer.seen == 4  # two microbatches in each of SAM's two passes


def test_a_scaler_would_scale_what_it_sees() -> None:
    with pytest.raises(wp.RecipeError, match="Counting differentiates the loss itself"):
        step(Counting, scaler=torch.amp.GradScaler("cpu"))
