"""Models that no technique was written for: what users have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES, ROWS = 3, 12


class ConvNet(nn.Module):
    """Convolutions with BatchNorm and a residual connection, on (B, 1, 8, 8); its stem is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 8, 3, stride=2, groups=2)
        self.head = nn.Linear(72, CLASSES)
        self.stem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.stem(x)))
        h = torch.relu(h + self.norm2(self.body(h)))
        return self.head(self.down(h).flatten(1))


class Transformer(nn.Module):
    """Self-attention over (B, 5, 8), two feed-forward blocks with the same weights, and a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight  # tied
        self.spare = nn.Linear(8, 8)  # its gradient stays None
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0])
        h = h + self.two(torch.nn.functional.gelu(self.one(h)))
        return self.head(h.mean(1))


class TwoDtypes(nn.Module):
    """A float32 body and a float64 head, on (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, CLASSES, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.body(x))).double())


FOREIGN: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "conv": (ConvNet, (1, 8, 8)),
    "transformer": (Transformer, (5, 8)),
    "dtypes": (TwoDtypes, (6,)),
}


def build(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FOREIGN[kind][0]()


def batch_for(kind: str) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, *FOREIGN[kind][1], generator=g)
    return {"x": x, "y": torch.arange(ROWS) % CLASSES, "index": torch.arange(ROWS)}


def groups_of(model: nn.Module) -> list[dict[str, object]]:
    """Two groups of parameters: biases and norms without decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
