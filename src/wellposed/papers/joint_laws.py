"""Pairs of variables whose mutual information is known, each with its optimal critic: the logarithm of the ratio of
p(x, y) to p(x) p(y). All in nats; x and y are (n, d)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class JointLaw(Protocol):
    """What every law offers."""

    @property
    def information(self) -> float:
        """Mutual information of x and y."""

    def sample(self, n: int, generator: torch.Generator) -> Pair:
        """n independent pairs."""

    def critic(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of p(x, y) / p(x) p(y), (n,)."""


@dataclass(frozen=True)
class CorrelatedGaussians:
    """Standard normal x and y of ``dims`` coordinates, each pair of coordinates with the same correlation."""

    dims: int
    rho: float

    @classmethod
    def of_information(cls, dims: int, nats: float) -> CorrelatedGaussians:
        """With this mutual information."""
        return cls(dims, math.sqrt(1 - math.exp(-2 * nats / dims)))

    @property
    def information(self) -> float:
        return -self.dims / 2 * math.log1p(-(self.rho**2))

    def sample(self, n: int, generator: torch.Generator) -> Pair:
        x, noise = torch.randn(2, n, self.dims, generator=generator)
        return x, self.rho * x + math.sqrt(1 - self.rho**2) * noise

    def critic(self, x: Tensor, y: Tensor) -> Tensor:
        return _log_ratio(x, y, self.rho).sum(-1)

    def noise(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """The best estimate of the noise in x_t = alpha x + sigma noise, where y is known or not; of y_t likewise."""
        if y is None:
            return sigma * x_t / (alpha**2 + sigma**2)
        return sigma * (x_t - alpha * self.rho * y) / (alpha**2 * (1 - self.rho**2) + sigma**2)

    def joint_noise(self, both: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The best estimate of the noise in x_t and y_t, side by side: sums and differences are independent."""
        x_t, y_t = both.chunk(2, 1)
        total = sigma * (x_t + y_t) / (alpha**2 * (1 + self.rho) + sigma**2)
        apart = sigma * (x_t - y_t) / (alpha**2 * (1 - self.rho) + sigma**2)
        return torch.cat([total + apart, total - apart], 1) / 2


@dataclass(frozen=True)
class MixedCorrelations:
    """One coordinate each, correlation rho or -rho by the toss of a coin: x and y depend but do not correlate."""

    rho: float

    @property
    def information(self) -> float:
        nodes, weights = np.polynomial.hermite_e.hermegauss(200)
        x, noise = (torch.from_numpy(v) for v in np.meshgrid(nodes, nodes))
        weight = torch.from_numpy(np.outer(weights, weights)) / (2 * math.pi)
        y = self.rho * x + math.sqrt(1 - self.rho**2) * noise  # the other half mirrors this one
        return float((weight * self.critic(x[..., None], y[..., None])).sum())

    def sample(self, n: int, generator: torch.Generator) -> Pair:
        x, noise = torch.randn(2, n, 1, generator=generator)
        sign = torch.randint(0, 2, (n, 1), generator=generator) * 2 - 1
        return x, sign * self.rho * x + math.sqrt(1 - self.rho**2) * noise

    def critic(self, x: Tensor, y: Tensor) -> Tensor:
        both = torch.logaddexp(_log_ratio(x, y, self.rho), _log_ratio(x, y, -self.rho))
        return (both - math.log(2)).squeeze(-1)


@dataclass(frozen=True)
class NoisySymbols:
    """x one of ``symbols`` whole numbers, y uniform on [x, x + 2]: a discrete and a continuous variable.

    Information log m - (m - 1) / m log 2: all but the first and last unit interval of y leave two symbols.
    """

    symbols: int

    @property
    def information(self) -> float:
        return math.log(self.symbols) - (self.symbols - 1) / self.symbols * math.log(2)

    def sample(self, n: int, generator: torch.Generator) -> Pair:
        x = torch.randint(0, self.symbols, (n, 1), generator=generator).float()
        return x, x + 2 * torch.rand(n, 1, generator=generator)

    def critic(self, x: Tensor, y: Tensor) -> Tensor:
        inside = (y >= x) & (y <= x + 2)
        near = torch.where((y < 1) | (y > self.symbols), 1.0, 2.0)  # symbols that y may come from
        return torch.where(inside, math.log(self.symbols) - near.log(), -math.inf).squeeze(-1)


@dataclass(frozen=True)
class Cubed:
    """Another law with y cubed, coordinate by coordinate: heavy tails, and the same information."""

    law: JointLaw

    @property
    def information(self) -> float:
        return self.law.information

    def sample(self, n: int, generator: torch.Generator) -> Pair:
        x, y = self.law.sample(n, generator)
        return x, y**3

    def critic(self, x: Tensor, y: Tensor) -> Tensor:
        return self.law.critic(x, y.sign() * y.abs() ** (1 / 3))


def _log_ratio(x: Tensor, y: Tensor, rho: float) -> Tensor:
    """Of one coordinate of correlated standard normals."""
    square = rho**2 * (x.square() + y.square()) - 2 * rho * x * y
    return -square / (2 * (1 - rho**2)) - math.log1p(-(rho**2)) / 2
