"""Autoencoders of the kinds people have, convolutions with BatchNorm and a transformer, and a few steps of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import wellposed as wp

CODE = 3


def conv(variational: bool = False) -> wp.Autoencoder:
    """On images (B, 1, 8, 8)."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, (1 + variational) * CODE)
    )
    decoder = nn.Sequential(
        nn.Linear(CODE, 64), nn.Unflatten(1, (4, 4, 4)), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1)
    )
    return wp.Autoencoder(encoder, decoder, variational)


def transformer(variational: bool = False) -> wp.Autoencoder:
    """On sequences (B, 5, 8), one code for each."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(40, (1 + variational) * CODE),
    )
    decoder = nn.Sequential(nn.Linear(CODE, 16), nn.ReLU(), nn.Linear(16, 40), nn.Unflatten(1, (5, 8)))
    return wp.Autoencoder(encoder, decoder, variational)


KINDS = {"conv": (conv, (1, 8, 8)), "transformer": (transformer, (5, 8))}


def build(kind: str, variational: bool = False) -> tuple[wp.Autoencoder, Tensor]:
    """A model of this kind, and 48 samples for it."""
    make, shape = KINDS[kind]
    return make(variational), torch.rand(48, *shape, generator=torch.Generator().manual_seed(1))


def trained(
    model: wp.Autoencoder, x: Tensor, *methods: wp.Method, steps: int = 60, lr: float = 0.01, beta: float | None = None
) -> list[dict[str, Tensor]]:
    """The terms of each step."""
    recipe = wp.Recipe(*methods).attach(model, wp.Autoencode(beta=beta))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return [recipe.step({"x": x}, optimizer) for _ in range(steps)]
