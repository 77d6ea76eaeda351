"""Representations that spread out."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ..parts.neighbours import squared_distances

__all__ = ["Dispersive", "dispersive_loss"]

Kind = Literal["infonce_l2", "infonce_cos", "hinge", "cov"]


def dispersive_loss(z: Tensor, kind: Kind = "infonce_l2", tau: float = 0.5, margin: float = 1.0) -> Tensor:
    """How close the representations of different samples are: contrastive learning's repulsion alone.

    Args:
        z: (B, D).
        kind: "infonce_l2": log mean_ij exp(-||z_i - z_j||^2 / (D tau)) over all B^2 pairs, i = j included; from
            log(1/B) (all far apart) to 0 (collapsed). "infonce_cos": the same of cosines, log mean exp(cos_ij / tau).
            "hinge": mean over i != j of max(0, margin - ||z_i - z_j||^2 / D)^2. "cov": sum over different units of
            their squared correlation over the batch.
        tau: temperature of the two former; above 0.
        margin: of "hinge"; above 0.

    Returns:
        a scalar in at least float32; Wang, He 2025 (arXiv 2506.09027). Where all representations coincide its gradient
        is 0, a saddle.
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    with torch.autocast(z.device.type, enabled=False):
        if kind == "infonce_l2":
            return _log_mean_exp(squared_distances(z) / (-z.shape[1] * tau))
        if kind == "infonce_cos":
            length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
            z = z / length.where(length > 1e-12, 1)  # a sample at 0 has no direction, and no pull that explodes
            return _log_mean_exp(z @ z.T / tau)
        if kind == "hinge":
            rows = len(z)
            close = F.relu(margin - squared_distances(z) / z.shape[1]).square().sum()
            return (close - rows * margin**2) / max(rows * (rows - 1), 1)  # the diagonal holds B margin^2
        return squared_correlations(z)


def squared_correlations(z: Tensor) -> Tensor:
    """Sum over pairs of different columns of z (B, D) of their squared correlation; a scalar.

    By the smaller of the two Gram matrices, whose Frobenius norms agree. Constant columns count as uncorrelated.
    """
    mean = z.mean(0)
    z = z - mean
    length = z.square().sum(0)
    rounding = len(z) * (8 * torch.finfo(z.dtype).eps * mean).square()  # what is left of a constant column
    z = z * length.where(length > rounding, torch.inf).rsqrt()
    gram = z.T @ z if z.shape[1] <= len(z) else z @ z.T
    return gram.square().sum() - z.square().sum(0).square().sum()


def _log_mean_exp(values: Tensor) -> Tensor:
    return values.flatten().logsumexp(0) - math.log(values.numel())


class Dispersive(Method, paper="dispersive-loss"):
    r"""Dispersive loss: spread out the hidden representations of a batch, without positive pairs.

    Computes:
        strength * log mean_ij exp(-||z_i - z_j||^2 / (D tau)), z the flattened output of one layer, or one of three
        other measures of closeness (``kind``). Under data parallelism over all ranks' samples.

    Formula:
        \lambda \log \frac{1}{B^2} \sum_{i,j} \exp \left( -\frac{\lVert z_i - z_j \rVert^2}{D \tau} \right)

    Helps:
        Distances between hidden representations: their mean square grew more than 8-fold in a small flow-matching net.
        The paper reports better samples of large image models.

    Avoid:
        Expecting better samples on small problems (null in two dimensions) or a higher effective rank, which moved
        either way, by a tenth to a quarter. Tapping a layer behind a normalisation, where the spread is
        fixed; before one, scale alone lowers the loss. "cov" with the default strength on a wide layer: it is a sum
        over all pairs of units.

    Defaults:
        infonce_l2, tau 0.5, strength 0.5: the paper's. The authors' short code has no temperature (tau 1). A block at
        about a quarter of the depth did best there.

    Cost:
        One pass; one (B, D) x (D, B) product.

    Reference:
        Wang, He 2025, Diffuse and Disperse: Image Generation with Representation Regularization, arXiv 2506.09027.
        Distances per unit of width, as in the authors' code; "hinge" measures them so too, and "cov" is taken of units
        standardised over the batch, both our reading.

    Args:
        layer: name of the submodule whose output is spread out.
        kind: "infonce_l2", "infonce_cos", "hinge" or "cov".
        tau: temperature of the two former.
        margin: of "hinge", in squared distance per unit.
        strength: factor of the penalty.
    """

    scope = "batch"
    exact = False
    example = {"model": "denoiser", "layer": "body.0"}

    layer: str = knob()
    kind: Kind = "infonce_l2"
    tau: float = knob(0.5, above=0.0)
    margin: float = knob(1.0, above=0.0)
    strength: Scalar = knob(0.5, low=0.0, grid=(0.25, 0.5, 1.0))

    def check(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Dispersive: kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        self.taps = (self.layer,)

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        found = step.taps[self.layer]
        z = found[0] if isinstance(found, tuple) else found
        return dispersive_loss(step.gather(z.flatten(1)), self.kind, self.tau, self.margin)
