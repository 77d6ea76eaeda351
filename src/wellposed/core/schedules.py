"""Schedules: functions of progress in [0, 1] that may stand wherever a strength is a number.

Any callable ``progress -> float`` is a schedule; the classes here can also be printed, compared and saved.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

Scalar = float | Callable[[float], float]


class _Schedule:
    def __post_init__(self) -> None:
        for value in vars(self).values():
            for number in value if isinstance(value, tuple | list) else (value,):
                if not isinstance(number, numbers.Real) or not math.isfinite(number):
                    raise ValueError(f"{type(self).__name__} is made of finite numbers, got {number!r}")


@dataclass(frozen=True)
class Constant(_Schedule):
    """``value`` throughout."""

    value: float

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(_Schedule):
    """Straight line from ``start`` to ``stop``."""

    start: float
    stop: float

    def __call__(self, progress: float) -> float:
        return self.start + (self.stop - self.start) * progress


@dataclass(frozen=True)
class Cosine(_Schedule):
    """Half a cosine from ``start`` to ``stop``: flat at both ends."""

    start: float
    stop: float

    def __call__(self, progress: float) -> float:
        return self.stop + (self.start - self.stop) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class WarmUp(_Schedule):
    """Linear rise from 0 to ``value`` over the first ``portion`` of training, then constant."""

    value: float
    portion: float = 0.1

    def __call__(self, progress: float) -> float:
        return self.value * min(1.0, progress / self.portion) if self.portion > 0 else self.value


@dataclass(frozen=True)
class Steps(_Schedule):
    """Piecewise constant: ``values[i]`` from ``milestones[i - 1]`` on; one more value than milestones."""

    values: tuple[float, ...]
    milestones: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_milestones(self.milestones, len(self.values) - 1)

    def __call__(self, progress: float) -> float:
        return self.values[sum(progress >= m for m in self.milestones)]


@dataclass(frozen=True)
class SineStages(_Schedule):
    """``values[0]`` until ``milestones[0]``, then half-sine ramps ending in ``values[i]`` at ``milestones[i]``.

    Continuous, with zero slope at every milestone. Song et al. 2024 (ProSparse, arXiv 2402.13516), Eq. 4.
    """

    values: tuple[float, ...]
    milestones: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_milestones(self.milestones, len(self.values))

    def __call__(self, progress: float) -> float:
        for i, (left, right) in enumerate(pairwise(self.milestones)):
            if left <= progress < right:
                low, high = self.values[i], self.values[i + 1]
                return low + (high - low) / 2 * (1 - math.cos(math.pi * (progress - left) / (right - left)))
        return self.values[0] if progress < self.milestones[0] else self.values[-1]


@dataclass(frozen=True)
class Exponential(_Schedule):
    """Geometric growth from ``start`` to ``stop`` in ``stages`` equal stages (0: smooth).

    ``stages`` = number of epochs reproduces "multiply by eta after every epoch".
    """

    start: float
    stop: float
    stages: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.start > 0 and self.stop > 0):
            raise ValueError(f"Exponential needs positive ends, got {self.start} and {self.stop}")

    def __call__(self, progress: float) -> float:
        if self.stages > 1:
            progress = min(math.floor(progress * self.stages), self.stages - 1) / (self.stages - 1)
        return self.start * (self.stop / self.start) ** progress


SCHEDULES: dict[str, type] = {c.__name__: c for c in (Constant, Linear, Cosine, WarmUp, Steps, SineStages, Exponential)}


def _check_milestones(milestones: tuple[float, ...], wanted: int) -> None:
    if len(milestones) != wanted or wanted < 1:
        raise ValueError(f"expected {max(wanted, 1)} milestones, got {len(milestones)}")
    if any(not 0 <= m <= 1 for m in milestones) or any(b <= a for a, b in pairwise(milestones)):
        raise ValueError(f"milestones must rise within [0, 1], got {milestones}")
