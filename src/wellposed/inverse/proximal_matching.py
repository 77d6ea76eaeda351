"""Proximal matching: a loss that makes a denoiser aim at the most probable clean signal, not at the mean one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Linear, Method, Step, knob

__all__ = ["ProximalMatching", "proximal_matching"]

PROGRESS = Linear(0.0, 1.0)


def proximal_matching(prediction: Tensor, y: Tensor, gamma: float) -> Tensor:
    """1 - exp(-||prediction - y||^2 / (n gamma^2)) of each sample, with n its number of elements.

    Args:
        prediction, y: (B, ...).
        gamma: width, in units of the root mean square error; above 0.

    Returns:
        shape (B,), from 0 to 1; Fang, Buchanan, Sulam 2023 (arXiv 2310.14344), without its constants.

    Raises:
        ValueError: for two shapes.
    """
    if prediction.shape != y.shape:  # subtracting would broadcast
        raise ValueError(
            f"proximal_matching: prediction and y differ in shape, {tuple(prediction.shape)} and {tuple(y.shape)}"
        )
    wide = torch.promote_types(prediction.dtype, torch.float32)
    error = (prediction - y).to(wide).square()
    return -torch.expm1(-error.reshape(len(error), -1).mean(1) / gamma**2)


class ProximalMatching(Method, paper="learned-proximal-network"):
    r"""Proximal matching: a smooth count of misses in place of the error, ever narrower, so that modes are learned.

    Computes:
        For the first part of training the task's own loss; then 1 - exp(-mse / gamma_k^2) of each sample, whose width
        is halved stage by stage until it is ``gamma``. As the width goes to 0 the best denoiser is the mode of the
        clean signal given the noisy one, the proximal operator of the data's negative log density.

    Formula:
        \ell = 1 - \exp\left( - \frac{\lVert f(y) - x \rVert^2}{n \gamma_k^2} \right)
        \gamma_k = 2^{K - k} \gamma, \quad k = 1, \ldots, K

    Helps:
        Learning priors: with ``LearnedProximal`` on Laplace numbers of scale 1 the soft threshold was met to within
        0.35 and |x| to within 0.4; squared error, whose posterior mean has no dead zone, missed by 0.5 and 0.65.

    Avoid:
        From the start: far from the data the loss is flat, hence the first part. Where decibels count: the posterior
        mean has the least squared error by definition. A small ``gamma`` in high dimensions: no sample is within reach.
        For plug and play as a rule: with sparse signals squared error gave the better denoiser.

    Defaults:
        gamma 0.08, 4 stages and half of training with absolute error (``Regress("absolute")``): the paper's for images
        in [0, 1]; there the second half has a tenth of the learning rate.

    Cost:
        One pass.

    Reference:
        Fang, Buchanan, Sulam 2023, What's in a Prior? Learned Proximal Networks for Inverse Problems,
        arXiv 2310.14344, section 3, without the constants of its loss. The paper's gamma is sqrt(n) times this one.

    Args:
        gamma: last width, in units of the root mean square error of a sample.
        stages: number of widths, each half the one before.
        pretrain: share of training with the task's own loss; 1 leaves it at that.
    """

    reads = ("prediction", "y")
    targets = frozenset({"real"})
    replaces = True
    null = {"pretrain": 1.0}
    example = {"model": "regressor", "pretrain": 0.0, "gamma": 1.0}

    gamma: float = knob(0.08, above=0.0, grid=(0.04, 0.08, 0.16), log=True)
    stages: int = knob(4, low=1)
    pretrain: float = knob(0.5, low=0.0, high=1.0)

    def width(self, progress: float) -> float | None:
        """gamma_k at this share of training; None while the task's own loss is used."""
        if progress < self.pretrain or self.pretrain == 1:
            return None
        stage = min(int((progress - self.pretrain) / (1 - self.pretrain) * self.stages), self.stages - 1)
        return self.gamma * 2.0 ** (self.stages - 1 - stage)

    def loss(self, loss: Tensor, step: Step) -> Tensor:
        width = self.width(step.at(PROGRESS))
        if width is None:
            return loss
        return proximal_matching(step.out["prediction"], step.batch["y"], width)
