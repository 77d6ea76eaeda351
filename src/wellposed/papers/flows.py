"""A small normalizing flow, for claims about densities and sampling: affine couplings with a normal base."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .arenas import mlp


class AffineCoupling(nn.Module):
    """Shifts and stretches one half of the coordinates by what a net says of the other half.

    The identity at first; a stretch is held within exp(+-``most``). Dinh, Sohl-Dickstein, Bengio 2016 (arXiv
    1605.08803), Eqs. 4 and 5.

    Args:
        mask: (D,), true where coordinates are read and stay.
        width: of the net's hidden layer.
        most: bound of the logarithm of a stretch.
        seed: of the net's weights.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, width: int = 32, most: float = 2.0, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.most = most
        self.net = mlp(seed, len(mask), width, width, 2 * len(mask))
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Towards the data: (B, D) to the same shape, and the logarithm of the stretch of volume, (B,)."""
        log_scale, shift = self._affine(z)
        return z * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Towards the base: the inverse, and the logarithm of its stretch of volume."""
        log_scale, shift = self._affine(x)  # what is read is the same on both sides
        return (x - shift) * (-log_scale).exp(), -log_scale.sum(1)

    def _affine(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.net(torch.where(self.mask, seen, 0)).chunk(2, 1)
        log_scale = self.most * torch.tanh(log_scale / self.most)
        return torch.where(self.mask, 0, log_scale), torch.where(self.mask, 0, shift)


class CouplingFlow(nn.Module):
    """RealNVP over (B, D): called with x it returns log-densities (B,), as ``Likelihood`` trains them.

    Args:
        size: D, at least 2.
        layers: number of couplings; even and odd coordinates take turns.
        width: of each coupling's net.
        seed: of all weights.
    """

    def __init__(self, size: int, layers: int = 6, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"CouplingFlow: couplings need at least 2 coordinates, got {size}")
        even = torch.arange(size) % 2 == 0
        self.size = size
        self.layers = nn.ModuleList(
            AffineCoupling(even if i % 2 else ~even, width, seed=seed + 1_000_003 * i) for i in range(layers)
        )

    def to_data(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Samples from those of the base, (B, D), and the logarithm of the stretch of volume, (B,)."""
        total = z.new_zeros(len(z))
        for layer in self.layers:
            z, stretch = layer(z)
            total = total + stretch
        return z, total

    def to_base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of ``to_data``, and the logarithm of its stretch of volume."""
        total = x.new_zeros(len(x))
        for layer in reversed(self.layers):
            assert isinstance(layer, AffineCoupling)
            x, stretch = layer.inverse(x)
            total = total + stretch
        return x, total

    def forward(self, x: Tensor) -> Tensor:
        """Log-density (nats) of each row."""
        z, stretch = self.to_base(x)
        return base_log_density(z) + stretch

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Samples (count, D) with their log-densities, differentiable by the weights."""
        like = next(self.parameters())
        z = torch.randn(count, self.size, generator=generator, dtype=like.dtype, device=like.device)
        x, stretch = self.to_data(z)
        return x, base_log_density(z) - stretch


def base_log_density(z: Tensor) -> Tensor:
    """Of the standard normal law, (B, D) to (B,)."""
    return -z.square().sum(1) / 2 - z.shape[1] * math.log(2 * math.pi) / 2
