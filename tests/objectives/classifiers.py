"""Two small classifiers of three classes on which every objective is tried, and loss rows of one batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.tasks.next_token import NextToken

torch.set_num_threads(1)  # on tensors this small a second thread only waits


class Encoder(nn.Module):
    """A transformer that classifies sequences, or with ``tokens=True`` every place of them."""

    def __init__(self, tokens: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        states = self.block(self.embed(x))
        return self.head(states if self.tokens else states.mean(1))


def problem(kind: str) -> tuple[nn.Module, wp.Task, dict[str, Tensor]]:
    """A fresh model, its task and a batch of 12: ``"conv"``, ``"transformer"`` or ``"tokens"`` (with padding)."""
    g = torch.Generator().manual_seed(1)
    y, index = torch.arange(12) % 3, torch.arange(12)
    ids = torch.randint(11, (12, 5), generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "conv":
            net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
            x = torch.randn(12, 1, 8, 8, generator=g)
            return net, wp.Classify(classes=3), {"x": x, "y": y, "index": index}
        if kind == "transformer":
            return Encoder(), wp.Classify(classes=3), {"x": ids, "y": y, "index": index}
        y = ids % 3
        y[:, -1] = -100
        y[0, 1:] = -100
        return Encoder(tokens=True), NextToken(classes=3), {"x": ids, "y": y, "index": index}


def fitted(method: wp.Method | None, kind: str, steps: int = 40) -> list[float]:
    """The task's loss before every update."""
    model, task, batch = problem(kind)
    recipe = wp.Recipe(*([method] if method else [])).attach(model, task, steps=steps, example=batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        with torch.no_grad(), recipe.evaluating() as m:
            losses.append(float(task.mean_loss(task.forward(m, batch), batch)))
        recipe.step(batch, optimizer)
    return losses


def rows(seed: int = 0, classes: int = 4, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (7, C) in float64 that require a gradient, class ids, and distributions over classes."""
    g = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(7, classes, generator=g, dtype=torch.float64)).requires_grad_()
    y = torch.randint(classes, (7,), generator=g)
    soft = torch.rand(7, classes, generator=g, dtype=torch.float64)
    return logits, y, soft / soft.sum(-1, keepdim=True)


def slope(value: Tensor, logits: Tensor) -> Tensor:
    """Gradient of the sum of ``value``."""
    return torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]
