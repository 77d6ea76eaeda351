"""Shifts of the test inputs: what the model meets after training that it did not meet in it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput

if TYPE_CHECKING:
    from .dataset import Kind

Stream = np.random.Generator


def gaussian(x: Tensor, severity: float, stream: Stream) -> Tensor:
    """Add noise of this standard deviation."""
    return x + severity * torch.from_numpy(stream.standard_normal(x.shape, np.float32))


def dropout(x: Tensor, severity: float, stream: Stream) -> Tensor:
    """Set each value to 0 (in a table: the training mean) with this probability."""
    return x * torch.from_numpy(stream.random(x.shape) >= severity)


def scale(x: Tensor, severity: float, stream: Stream) -> Tensor:
    """Multiply every value, as a changed unit or sensor gain would."""
    return x * severity


def blur(x: Tensor, severity: float, stream: Stream) -> Tensor:
    """Gaussian blur with this standard deviation in pixels; `x` is (n, channels, height, width)."""
    if severity == 0:
        return x
    radius = math.ceil(2 * severity)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / severity) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = x.reshape(-1, 1, *x.shape[2:])
    for weight in (kernel, kernel.mT):  # separable; dividing by the blurred ones keeps the borders as bright
        flat = F.conv2d(flat, weight, padding="same") / F.conv2d(torch.ones_like(flat[:1]), weight, padding="same")
    return flat.view_as(x)


def invert(x: Tensor, severity: float, stream: Stream) -> Tensor:
    """Go this share of the way to the negative; `x` in [0, 1]."""
    return x + severity * (1 - 2 * x)


def contrast(x: Tensor, severity: float, stream: Stream) -> Tensor:
    """Pull each image this share of the way to its own mean grey; `x` is (n, channels, height, width)."""
    return torch.lerp(x, x.mean((1, 2, 3), keepdim=True), severity)


def replace(x: Tensor, severity: float, stream: Stream) -> Tensor:
    """Exchange each character, with this probability, for one drawn from elsewhere in the test text."""
    drawn = x.flatten()[torch.from_numpy(stream.integers(0, x.numel(), x.shape))]
    return torch.where(torch.from_numpy(stream.random(x.shape) < severity), drawn, x)


# For each kind of data the corruptions that mean something there, with the severity taken when none is named
# and the largest one allowed.
_SHARE, _ANY = 1.0, math.inf
_KNOWN: dict[str, dict[str, tuple[Callable[[Tensor, float, Stream], Tensor], float, float]]] = {
    "tabular": {
        "gaussian": (gaussian, 0.3, _ANY),
        "dropout": (dropout, 0.2, _SHARE),
        "scale": (scale, 1.5, _ANY),
    },
    "image": {
        "gaussian": (gaussian, 0.3, _ANY),
        "dropout": (dropout, 0.2, _SHARE),
        "scale": (scale, 0.5, _ANY),
        "blur": (blur, 1.0, 100.0),
        "invert": (invert, 1.0, _SHARE),
        "contrast": (contrast, 0.5, _SHARE),
    },
    "text": {"replace": (replace, 0.1, _SHARE)},
}


@dataclass(frozen=True)
class Corruption:
    """A named shift with its severity; calling it on inputs and a random stream applies it."""

    name: str
    severity: float
    apply: Callable[[Tensor, float, Stream], Tensor]

    def __call__(self, x: Tensor, stream: Stream) -> Tensor:
        return self.apply(x, self.severity, stream)


def parse(text: str, kind: "Kind") -> Corruption:
    """Read "NAME[:SEVERITY]" for this kind of data; raise `BadInput` for an unknown name or severity."""
    name, _, number = text.strip().partition(":")
    known = _KNOWN[kind]
    if name.lower() not in known:
        raise BadInput(f"unknown corruption '{name}' for {kind} data: choose from {', '.join(known)}")
    apply, severity, most = known[name.lower()]
    if number:
        try:
            severity = float(number)
        except ValueError:
            severity = math.nan
        if not (0 <= severity <= most and math.isfinite(severity)):
            limits = "0 or larger" if most == _ANY else f"between 0 and {most:g}"
            raise BadInput(f"severity '{number}' of corruption '{name}' must be a number {limits}")
    return Corruption(name.lower(), severity, apply)
