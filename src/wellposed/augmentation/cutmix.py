"""Pasting a rectangle of one image into another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.task import Batch
from ._mixing import CPU, TARGETS, draw_mixture, real_targets, require_classes

__all__ = ["CutMix", "cutmix_batch", "draw_box"]


def draw_box(height: int, width: int, share: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A rectangle of about (1 - share) of the image around a uniform centre, clipped to the image.

    Returns:
        (top, bottom, left, right), half-open; Yun et al. 2019 (arXiv 1905.04899), Eq. 2.
    """
    side = (1 - share) ** 0.5
    tall, wide = int(height * side), int(width * side)
    row = int(torch.randint(height, (), generator=generator))
    column = int(torch.randint(width, (), generator=generator))
    top, left = row - tall // 2, column - wide // 2
    return max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width)


def cutmix_batch(x: Tensor, y: Tensor, partner: Tensor, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, float]:
    """Samples with a rectangle of their partners pasted in, and targets mixed by area.

    Args:
        x: images (B, ..., H, W) with at least three dimensions; the rectangle lies in the last two.
        y: real targets, (B, ...).
        partner: index of each sample's partner, (B,).
        box: (top, bottom, left, right), half-open.

    Returns:
        images, targets, and the share of pixels a sample kept; Yun et al. 2019 (arXiv 1905.04899), Eq. 1.

    Raises:
        ValueError: if ``x`` has fewer than three dimensions.
    """
    if x.ndim < 3:
        raise ValueError(
            f"CutMix needs images (B, ..., H, W), got inputs of shape {tuple(x.shape)}; use MixUp for rows"
        )
    top, bottom, left, right = box
    share = 1 - (bottom - top) * (right - left) / (x.shape[-2] * x.shape[-1])
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x[..., top:bottom, left:right][partner]
    return mixed, torch.lerp(y[partner], y, share), share


def cut(method: Method, batch: Batch, step: Step, alpha: float) -> tuple[Batch, Tensor, float]:
    """``batch`` after CutMix, each sample's partner (B,), and the share of pixels it kept."""
    x = batch["x"]
    partner, share = draw_mixture(method, step, x, alpha)
    box = draw_box(x.shape[-2], x.shape[-1], share, step.rng(method, "box", device=CPU))
    x, y, kept = cutmix_batch(x, real_targets(batch["y"], x, step.task), partner, box)
    return {**batch, "x": x, "y": y}, partner, kept


class CutMix(Method):
    r"""CutMix: paste a rectangle of another image, and mix the targets by area.

    Computes:
        x <- M x_i + (1 - M) x_j with M zero in a rectangle of area 1 - lam, lam from Beta(alpha, alpha), around a
        uniform centre and clipped at the border; y <- lam' y_i + (1 - lam') y_j with lam' the share truly kept. One
        rectangle and one permutation per batch.

    Formula:
        x = M \odot x_i + (1 - M) \odot x_j, \qquad y = \lambda' y_i + (1 - \lambda') y_j
        \lambda' = \mathrm{mean}(M)

    Helps:
        Image classifiers and detectors that lean on one small part of the object, trained long enough.

    Avoid:
        Inputs without two spatial dimensions (refused), and objects so small that a rectangle hides all of one.

    Defaults:
        alpha 1 (lam uniform), the paper's for ImageNet and CIFAR. The paper's CIFAR runs cut every second batch only;
        here every batch is cut.

    Cost:
        One pass; a copy of the batch.

    Reference:
        Yun, Han, Oh, Chun, Choe, Yoo 2019, CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features, arXiv 1905.04899, Eqs. 1 and 2.

    Args:
        alpha: concentration of the Beta distribution; 0 cuts nothing.
    """

    reads = ("x", "y")
    targets = TARGETS
    null = {"alpha": 0.0}
    exact = False
    example = {"model": "conv"}

    alpha: float = knob(1.0, low=0.0, grid=(0.2, 1.0, 4.0), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        require_classes(self, task)

    def batch(self, batch: Batch, step: Step) -> Batch:
        return cut(self, batch, step, self.alpha)[0] if self.alpha else batch
