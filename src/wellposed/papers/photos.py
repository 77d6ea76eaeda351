"""Photographs for claims about restoring images: patches of two sample photos, noise of known laws, how near a
restoration comes, and a small convolutional denoiser."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

WORDS = "grey patches of scikit-learn's two sample photos"


@cache
def photos() -> Tensor:
    """The two photos of scikit-learn in grey (mean of the colours), values in [0, 1]: (2, 427, 640)."""
    from sklearn.datasets import load_sample_images

    return torch.stack([torch.tensor(image).float().mean(-1) / 255 for image in load_sample_images().images])


def patches(seed: int, train: int, test: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Random squares, (train, 1, size, size) from the left three quarters of both photos and (test, ...) from the rest.

    Training and test squares never overlap; squares of one set may.
    """
    images, g = photos(), torch.Generator().manual_seed(seed)
    edge = images.shape[2] * 3 // 4
    return _crops(images[:, :, :edge], train, size, g), _crops(images[:, :, edge:], test, size, g)


def _crops(images: Tensor, count: int, size: int, g: torch.Generator) -> Tensor:
    windows = images.unfold(1, size, 1).unfold(2, size, 1)  # a view: (photo, row, column, size, size)
    which = [torch.randint(n, (count,), generator=g) for n in windows.shape[:3]]
    return windows[which[0], which[1], which[2]].unsqueeze(1)


# ---- noise: each has mean x
def gaussian_noise(x: Tensor, deviation: float, g: torch.Generator) -> Tensor:
    """x + deviation * normal."""
    return x + deviation * torch.randn(x.shape, generator=g, dtype=x.dtype)


def poisson_noise(x: Tensor, gain: float, g: torch.Generator) -> Tensor:
    """gain * Poisson(x / gain): variance gain * x."""
    return gain * torch.poisson(x / gain, generator=g)


def gamma_noise(x: Tensor, looks: float, g: torch.Generator) -> Tensor:
    """x * Gamma(looks) / looks: speckle, of variance x^2 / looks."""
    return x * torch._standard_gamma(torch.full_like(x, looks), generator=g) / looks


def psnr(restored: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, of values in [0, 1]: -10 log10 of the mean squared error over all."""
    return -10 * math.log10(float((restored - clean).square().mean()))


class ConvDenoiser(nn.Module):
    """A chain of 3x3 convolutions with ReLU that predicts what to add to the image: (B, C, H, W) to the same."""

    def __init__(self, channels: int = 1, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        sizes = [channels, *[width] * (depth - 1), channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The image, and the correction."""
        return x + self.body(x)
