"""Small networks that several claims share: a conv net with BatchNorm, a bidirectional transformer, and the masked
autoencoder made of two of those. All take 8x8 digits, flat or as images, and the transformers take text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..selfsup.mae import MaskedAutoencoder


def seeded(seed: int, build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Any:
    """``build(*args, **kwargs)`` with weights that are a function of the seed; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args, **kwargs)


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm, each halving the image, and a linear head.

    Maps (B, channels, side, side) or (B, channels * side * side) to (B, outputs); ``features`` stops before the head,
    at (B, 2 * width * (side / 4)^2).
    """

    def __init__(self, outputs: int, width: int = 16, side: int = 8, channels: int = 1) -> None:
        super().__init__()
        self.image = (channels, side, side)
        self.features_ = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width * ((side + 3) // 4) ** 2, outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees."""
        return self.features_(x.reshape(-1, *self.image))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs."""
        return self.head(self.features(x))


def blocks(width: int, depth: int, heads: int = 2, dropout: float = 0.0) -> nn.Module:
    """``depth`` pre-norm transformer blocks in which every place sees every other: (B, T, W) to (B, T, W)."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)


class Transformer(nn.Module):
    """A bidirectional transformer over ids (B, T) or real vectors (B, T, D).

    Maps to (B, T, outputs), or with ``pooled`` to (B, outputs) of the mean over places; ``states`` stops before the
    head, at (B, T, width).

    Args:
        length: T, at most.
        outputs: of the head.
        ids: size of the vocabulary, for text; None for vectors.
        size: D, for vectors.
        width, depth, heads, dropout: of the blocks.
        pooled: one output a sample in place of one a place.
    """

    def __init__(
        self,
        length: int,
        outputs: int,
        *,
        ids: int | None = None,
        size: int | None = None,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
        dropout: float = 0.0,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.embed = embedding(ids, size, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = blocks(width, depth, heads, dropout)
        self.head = nn.Linear(width, outputs)
        self.pooled = pooled

    def states(self, x: Tensor) -> Tensor:
        """Representations of the places."""
        tokens = self.embed(x)
        return self.blocks(tokens + self.place[: tokens.shape[1]])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs."""
        states = self.states(x)
        return self.head(states.mean(1) if self.pooled else states)


def embedding(ids: int | None, size: int | None, width: int) -> nn.Module:
    """A table of ``ids`` rows, or a linear map from ``size`` numbers: whichever is given.

    Raises:
        ValueError: unless exactly one is.
    """
    if (ids is None) == (size is None):
        raise ValueError("give either ids, the size of the vocabulary, or size, the numbers in a vector")
    return nn.Embedding(ids, width) if ids is not None else nn.Linear(size or 0, width)


def masked_autoencoder(
    places: int | tuple[int, ...],
    outputs: int,
    *,
    ids: int | None = None,
    size: int | None = None,
    width: int = 32,
    depth: int = 2,
    decoder_width: int | None = None,
    decoder_depth: int = 1,
    heads: int = 2,
) -> MaskedAutoencoder:
    """A masked autoencoder of transformer blocks over ids (B, T) or vectors (B, T, size); 2x2 patches of digits, say.

    Args:
        places: T, or a grid.
        outputs: numbers predicted per place: ``size``, or ``ids``.
        ids, size, width, depth, heads: of the encoder, as of ``Transformer``.
        decoder_width, decoder_depth: of the decoder; as wide as the encoder by default.
    """
    return MaskedAutoencoder(
        embedding(ids, size, width),
        blocks(width, depth, heads),
        blocks(decoder_width or width, decoder_depth, heads),
        places=places,
        outputs=outputs,
        width=width,
        decoder_width=decoder_width,
        period=16.0,  # a handful of places
    )
