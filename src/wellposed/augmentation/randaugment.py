"""RandAugment: a few random image operations at one strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Method, Step, knob
from ..core.schedules import Scalar
from ..core.task import Batch
from ._mixing import CPU

__all__ = ["IMAGE_OPERATIONS", "RandAugment", "rand_augment"]

Operation = Callable[[Tensor, Tensor, float], Tensor]  # images in [0, 1], a sign for each, magnitude in [0, 1]


# ---- geometry
def _affine(x: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float) -> Tensor:
    """Images resampled at [[a, b], [c, d]] times the pixel's position from the centre, in pixels; zeros outside."""
    return _resample(x, a, b, c, d, 0.0, 0.0)


def _resample(
    x: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float,
    right: Tensor | float, down: Tensor | float,
) -> Tensor:  # fmt: skip
    height, width = x.shape[-2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    theta = torch.zeros(len(x), 2, 3, dtype=wide, device=x.device)
    # grid_sample measures in half widths and half heights
    theta[:, 0, 0], theta[:, 0, 1], theta[:, 0, 2] = a, b * (height / width), right * (2 / width)
    theta[:, 1, 0], theta[:, 1, 1], theta[:, 1, 2] = c * (width / height), d, down * (2 / height)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x.to(wide), grid, align_corners=False).to(x.dtype)


def rotate(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Turned by up to 30 degrees."""
    angle = sign * (m * torch.pi / 6)
    return _affine(x, angle.cos(), angle.sin(), -angle.sin(), angle.cos())


def shear_x(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Rows slid by up to 0.3 of their distance from the middle."""
    return _affine(x, 1.0, sign * (0.3 * m), 0.0, 1.0)


def shear_y(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Columns slid by up to 0.3 of their distance from the middle."""
    return _affine(x, 1.0, 0.0, sign * (0.3 * m), 1.0)


def translate_x(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Moved sideways by up to 150 / 331 of the width."""
    return _resample(x, 1.0, 0.0, 0.0, 1.0, sign * (m * 150 / 331 * x.shape[-1]), 0.0)


def translate_y(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Moved up or down by up to 150 / 331 of the height."""
    return _resample(x, 1.0, 0.0, 0.0, 1.0, 0.0, sign * (m * 150 / 331 * x.shape[-2]))


# ---- colour
def _gray(x: Tensor) -> Tensor:
    """(B, 1, H, W): luma of three channels, the mean of any other number."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device)
    return (x * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(plain: Tensor, x: Tensor, sign: Tensor, m: float) -> Tensor:
    """From ``plain`` at factor 0 over x at 1 to beyond it; the factor is 1 +- 0.9 m."""
    return torch.lerp(plain.expand_as(x), x, (1 + 0.9 * m * sign).to(x.dtype).view(-1, 1, 1, 1)).clamp(0, 1)


def brightness(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Toward or away from black."""
    return _blend(torch.zeros_like(x), x, sign, m)


def color(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Toward or away from grey; nothing on images of one channel."""
    return _blend(_gray(x), x, sign, m)


def contrast(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Toward or away from the mean grey."""
    return _blend(_gray(x).mean((2, 3), keepdim=True), x, sign, m)


def sharpness(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Toward or away from a 3 x 3 blur; the border stays."""
    kernel = torch.ones(3, 3, dtype=x.dtype, device=x.device)
    kernel[1, 1] = 5
    blurred = x.clone()
    if min(x.shape[-2:]) > 2:
        channels = x.shape[1]
        kernel = (kernel / 13).expand(channels, 1, 3, 3)
        blurred[..., 1:-1, 1:-1] = F.conv2d(x, kernel, groups=channels)
    return _blend(blurred, x, sign, m)


def posterize(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """8 - round(4 m) bits a channel."""
    step = 2 ** round(4 * m)
    return ((x * 255).round() / step).floor() * (step / 255) if step > 1 else x


def solarize(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Values from (1 - m) 256 / 255 on inverted: none at m = 0, all at 1."""
    return torch.where(x >= (1 - m) * 256 / 255, 1 - x, x)


def autocontrast(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Each channel stretched to the whole range, whatever the magnitude."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low), x)


def equalize(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Each channel's histogram of 256 values made flat, whatever the magnitude; nothing below about 256 pixels."""
    values = (x.clamp(0, 1) * 255).round().long().flatten(2)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    highest = values.amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    flat = torch.where(step > 0, table.gather(2, values).to(x.dtype) / 255, x.flatten(2))
    return flat.view_as(x)


def identity(x: Tensor, sign: Tensor, m: float) -> Tensor:
    """Nothing."""
    return x


IMAGE_OPERATIONS: dict[str, Operation] = {
    f.__name__: f
    for f in (
        identity, autocontrast, equalize, rotate, solarize, color, posterize, contrast, brightness, sharpness, shear_x,
        shear_y, translate_x, translate_y,
    )
}  # fmt: skip
"""The paper's 14, by name."""


@torch.no_grad()
def rand_augment(
    x: Tensor, n: int, magnitude: float, generator: torch.Generator, ops: Sequence[str] = tuple(IMAGE_OPERATIONS)
) -> Tensor:
    """``n`` operations in a row on each image, drawn with replacement, each way with probability 1/2.

    Args:
        x: (B, C, H, W), floating point in [0, 1].
        n: number of operations.
        magnitude: of all of them, in [0, 1] (the paper's M over 10, or over 30).
        generator: of the draws, on the CPU, so that no GPU is waited for.
        ops: names from ``IMAGE_OPERATIONS``.

    Returns:
        shaped like ``x``; Cubuk et al. 2019 (arXiv 1909.13719), section 3 and appendix A.
    """
    for _ in range(n):
        chosen = torch.randint(len(ops), (len(x),), generator=generator)
        signs = (2 * torch.randint(2, (len(x),), generator=generator) - 1).to(x.dtype)
        moved = torch.empty_like(x)
        for k, name in enumerate(ops):
            rows = (chosen == k).nonzero()[:, 0]
            if len(rows):
                there = rows.to(x.device)
                moved[there] = IMAGE_OPERATIONS[name](x[there], signs[rows].to(x.device), magnitude)
        x = moved
    return x


class RandAugment(Method, paper="randaugment"):
    r"""RandAugment: a few random image operations, all at one magnitude.

    Computes:
        Every image goes through n operations, drawn with replacement from 14 (flips of tone, colour, turns, slides), at
        a common magnitude, which may be a schedule; direction at random.

    Formula:
        x \leftarrow (o_{k_n} \circ \dots \circ o_{k_1})(x; \pm M), \qquad k_i \sim U\{1, \dots, 14\}

    Helps:
        Inputs that are moved, turned or toned differently in use: digits shifted by one pixel are recognised far more
        often. Two numbers in place of a search for a policy.

    Avoid:
        Where an operation changes the class (6 and 9). A larger magnitude is not more of the same: it leaves small
        changes out, since every operation goes the whole way (digits shifted by one pixel are recognised far better
        after 0.3, which is one pixel there, than after 0.6). Autocontrast and equalize know no magnitude, so magnitude
        0 still changes images.

    Defaults:
        n 2 and magnitude 0.3, which is the paper's 9 of 30 for ImageNet.

    Cost:
        One pass; each operation runs once a batch, on the images that drew it.

    Reference:
        Cubuk, Zoph, Shlens, Le 2019, RandAugment: Practical automated data augmentation with a reduced search space,
        arXiv 1909.13719. Interpolation is bilinear, which small images need, where common implementations take the
        nearest pixel; outside is black.

    Args:
        n: operations an image.
        magnitude: of all operations, in [0, 1]; a number or a schedule.
        low: lowest legal value of the input.
        high: highest legal value of the input.
        ops: names of operations to draw from; none: all.
    """

    reads = ("x",)
    null = {"n": 0}
    exact = False  # every microbatch draws its own operations
    example = {"model": "conv"}

    n: int = knob(2, low=0)
    magnitude: Scalar = knob(0.3, low=0.0, high=1.0, grid=(0.1, 0.3, 0.6))
    low: float = 0.0
    high: float = 1.0
    ops: Sequence[str] = ()

    def check(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"RandAugment: low must be below high, got {self.low:g} and {self.high:g}")
        if unknown := [name for name in self.ops if name not in IMAGE_OPERATIONS]:
            raise ValueError(f"RandAugment: no operation {', '.join(unknown)}; there are {', '.join(IMAGE_OPERATIONS)}")

    def batch(self, batch: Batch, step: Step) -> Batch:
        if self.n == 0:
            return batch
        x = batch["x"]
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"RandAugment needs images (B, C, H, W) of real numbers, got {got}")
        span = self.high - self.low
        found = rand_augment(
            ((x - self.low) / span).clamp(0, 1), self.n, step.at(self.magnitude), step.rng(self, device=CPU),
            tuple(self.ops) or tuple(IMAGE_OPERATIONS),
        )  # fmt: skip
        return {**batch, "x": found * span + self.low}
