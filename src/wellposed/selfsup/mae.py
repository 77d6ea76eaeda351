"""Masked autoencoders: encode the few places that are shown, reconstruct those that are hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.citing import implements

__all__ = [
    "MaskedAutoencoder",
    "hidden_mask",
    "normalised_patches",
    "patchify",
    "sine_positions",
    "unpatchify",
    "visible_places",
]


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images into square patches, row by row: (B, C, H, W) to (B, T, C * patch^2).

    Raises:
        ValueError: if the patches do not tile the image.
    """
    rows, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(f"patchify: patches of {patch} do not tile images of {height} x {width}")
    cut = images.reshape(rows, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * patch * patch)


def unpatchify(patches: Tensor, patch: int, shape: tuple[int, int, int]) -> Tensor:
    """Put patches back together: (B, T, C * patch^2) to (B, *shape), shape = (C, H, W)."""
    channels, height, width = shape
    cut = patches.reshape(-1, height // patch, width // patch, channels, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(-1, *shape)


def normalised_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch minus its mean, by its standard deviation (unbiased): the target that did best in the paper."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()


def visible_places(rows: int, places: int, ratio: float = 0.75, generator: torch.Generator | None = None) -> Tensor:
    """Indices of the places that stay visible, drawn without replacement for each sample, ascending.

    Args:
        rows: B.
        places: T.
        ratio: share that is hidden, in [0, 1); int((1 - ratio) T) stay visible, at least one.
        generator: of the draw; the result lives on its device.

    Returns:
        int64, (B, K).

    Raises:
        ValueError: for a ratio outside [0, 1).
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"visible_places: ratio must be 0 or more and below 1, got {ratio:g}")
    noise = torch.rand(rows, places, generator=generator, device=generator.device if generator else None)
    return noise.argsort(1)[:, : max(1, int((1 - ratio) * places))].sort(1).values


def hidden_mask(visible: Tensor, places: int) -> Tensor:
    """True at the places that are not among ``visible`` (B, K): shape (B, places)."""
    return torch.ones(len(visible), places, dtype=torch.bool, device=visible.device).scatter(1, visible, False)


def sine_positions(places: int | tuple[int, ...], width: int, period: float = 10000.0) -> Tensor:
    """Fixed positions: sines and cosines of the place at wavelengths from 2 pi up to 2 pi * ``period``.

    Args:
        places: T, or the sizes of a grid; each axis then gets an equal part of the width.
        width: a multiple of twice the number of axes.
        period: well above the largest size most of the width is the same everywhere; take less on small grids.

    Returns:
        shape (T, width), places of a grid row by row.

    Raises:
        ValueError: for another width.
    """
    sizes = (places,) if isinstance(places, int) else places
    if width % (2 * len(sizes)):
        raise ValueError(f"sine_positions: width must be a multiple of {2 * len(sizes)}, got {width}")
    half = width // (2 * len(sizes))
    rates = period ** (-torch.arange(half) / half)
    axes = torch.meshgrid(*map(torch.arange, sizes), indexing="ij")
    angles = [axis.reshape(-1, 1) * rates for axis in axes]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)


@implements("mae")
class MaskedAutoencoder(nn.Module):
    r"""Masked autoencoder: learn representations by reconstructing most of the input from a small visible part.

    Computes:
        Embeds and encodes only the visible places; puts the result back among copies of one learned mask token, adds
        positions, and decodes a prediction for every place. Train it as ``MaskedModel(kind, visible=True)``, whose loss
        counts the hidden places alone; keep the encoder.

    Formula:
        L = \frac{1}{|H|} \sum_{t \in H} \frac{1}{D} \lVert g(f(x_V) \cup m)_t - y_t \rVert^2

    Helps:
        Few labels and many unlabelled samples: on digits a linear probe of the mean state gained about 10 points on
        the untrained encoder, nearest neighbours about 30. The encoder's cost falls with the share that is hidden.

    Avoid:
        Expecting more than raw pixels give on digits, or anything from a few hundred updates: the probe got worse
        before it got better. Encoding a masked input at test time: show all places.

    Defaults:
        Hide 3/4 (text: 0.15), a decoder narrower and shallower than the encoder, targets normalised per patch
        (``normalised_patches``) for photographs, raw values for images with flat patches, AdamW with betas 0.9, 0.95.

    Cost:
        The encoder sees (1 - ratio) T places, the decoder T.

    Reference:
        He, Chen, Xie, Li, Dollar, Girshick 2021, Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377,
        section 3. Without a class token, which the paper found unnecessary. int((1 - ratio) T) places stay visible, as
        in the authors' code.

    Args:
        embed: (B, K, D) vectors or (B, K) ids to (B, K, width).
        encoder: (B, K, width) to the same, for any K; a stack of transformer blocks.
        decoder: (B, T, decoder_width) to the same.
        places: T, or the grid of patches (rows, columns); positions are fixed sines and cosines.
        outputs: numbers per place that are predicted: D of a patch, or classes of a token.
        width: of the encoder.
        decoder_width: of the decoder; default that of the encoder.
        period: of the positions; see ``sine_positions``.
    """

    def __init__(
        self,
        embed: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        places: int | tuple[int, ...],
        outputs: int,
        width: int,
        decoder_width: int | None = None,
        period: float = 10000.0,
    ) -> None:
        super().__init__()
        inner = decoder_width or width
        self.embed, self.encoder, self.decoder = embed, encoder, decoder
        self.bridge, self.head = nn.Linear(width, inner), nn.Linear(inner, outputs)
        self.place: Tensor
        self.decoder_place: Tensor
        self.register_buffer("place", sine_positions(places, width, period), persistent=False)
        self.register_buffer("decoder_place", sine_positions(places, inner, period), persistent=False)
        self.mask_token = nn.Parameter(0.02 * torch.randn(inner))

    def encode(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """States (B, K, width) of the visible places; of all, (B, T, width), without ``visible``."""
        if visible is None:
            return self.encoder(self.embed(x) + self.place[: x.shape[1]])
        shown = x.gather(1, visible if x.ndim == 2 else visible[..., None].expand(-1, -1, x.shape[2]))
        return self.encoder(self.embed(shown) + self.place[visible])

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Predictions for every place, (B, T, outputs), from the visible ones."""
        states = self.bridge(self.encode(x, visible))
        if visible is not None:
            blank = self.mask_token.to(states.dtype).expand(len(x), x.shape[1], -1)
            states = blank.scatter(1, visible[..., None].expand(-1, -1, states.shape[2]), states)
        return self.head(self.decoder(states + self.decoder_place[: x.shape[1]]))
