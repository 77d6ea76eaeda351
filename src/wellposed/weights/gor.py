"""Orthogonality inside groups of filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ._layers import CONV, LINEAR, weight_layers, weight_rows

__all__ = ["GOR", "group_orthogonality", "groups_of"]

Mode = Literal["inter", "intra"]


def groups_of(units: int, groups: int, smallest: int = 4) -> int:
    """Number of equal groups: the largest divisor of ``units`` up to ``groups`` that leaves ``smallest`` in each.

    At least 1, however few units there are.
    """
    most = max(1, min(groups, units // smallest))
    return next(n for n in range(most, 0, -1) if units % n == 0)


def group_orthogonality(weights: Sequence[Tensor], groups: int = 32, mode: Mode = "inter") -> Tensor:
    """Soft orthonormality of small sets of filters.

    Args:
        weights: each (units, ...); a filter is its flattened fan-in.
        groups: number of groups of neighbouring filters, lowered per weight by ``groups_of``.
        mode: "inter": a set is a group. "intra": the k-th set is the k-th filter of every group.

    Returns:
        sum over weights and sets V (r, d) of ||V V^T - I||_F^2, or ||V^T V - I||_F^2 where r > d (they differ by the
        constant r - d); a scalar. Kurtz, Bar, Giryes 2023 (arXiv 2306.10001).
    """
    residuals = []
    for weight in weights:
        sets = weight.reshape(groups_of(len(weight), groups), -1, weight[0].numel())
        if mode == "intra":
            sets = sets.transpose(0, 1)
        if sets.shape[1] > sets.shape[2]:
            sets = sets.mT
        eye = torch.eye(sets.shape[1], dtype=sets.dtype, device=sets.device)
        with torch.autocast(sets.device.type, enabled=False):  # a product in half precision is far from exact
            residuals.append(torch.baddbmm(eye.expand(len(sets), -1, -1), sets, sets.mT, beta=-1).flatten())
    return torch.cat(residuals).square().sum()


class GOR(Method, paper="gor"):
    r"""Group orthogonalization: filters within small sets become orthonormal.

    Computes:
        strength * sum over layers and sets of filters of ||V V^T - I||_F^2. A layer's C filters are cut into groups of
        neighbours, as GroupNorm does; a set is a group ("inter") or one filter of each group ("intra"). One group and
        "inter" is the full soft orthogonality, at C / groups times the cost.

    Formula:
        \lambda \sum_{l} \sum_{V \in \mathrm{sets}(l)} \lVert V V^{\top} - I \rVert_F^2

    Helps:
        Wrong labels on small nets (7 to 15 points at 40 %, with strength 0.01 to 0.1 and 8 groups); built for nets with
        GroupNorm and for adapters.

    Avoid:
        As help against adversarial attacks: no gain in robust accuracy was seen beside adversarial training. Where
        a group has a single filter: only lengths are then held.

    Defaults:
        strength 0.01, the largest of the authors' (down to 1e-6 by task: it sums over all sets, so larger nets need
        less). 32 groups of at least 4 filters.

    Cost:
        One pass; C^2 d / groups products for a layer of C filters with fan-in d.

    Reference:
        Kurtz, Bar, Giryes 2023, Group Orthogonalization Regularization For Vision Models Adaptation and Robustness,
        arXiv 2306.10001. A number of groups that does not divide C is lowered until it does.

    Args:
        groups: number of groups per layer, at most.
        mode: which filters are made orthogonal, "inter" or "intra".
        linear: whether linear layers count as well as convolutions; None: only in models without convolutions.
        strength: factor of the penalty.
    """

    scope = "params"

    groups: int = knob(32, low=1)
    mode: Mode = "inter"
    linear: bool | None = None
    strength: Scalar = knob(0.01, low=0.0, grid=(0.001, 0.01, 0.1), log=True)

    def check(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"GOR: mode must be 'inter' or 'intra', got {self.mode!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        linear = self.linear
        if linear is None:
            linear = not any(isinstance(m, CONV) for m in model.modules())
        self.layers = weight_layers(self, model, CONV + LINEAR if linear else CONV)

    def penalty(self, step: Step) -> Tensor:
        return group_orthogonality(weight_rows(step.model, self.layers), self.groups, self.mode)
