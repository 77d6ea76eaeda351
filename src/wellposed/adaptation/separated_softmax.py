"""Separated softmax: new classes compete among themselves, not with the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Method, RecipeError, Step
from ..tasks.targets import is_class_ids

__all__ = ["SeparatedSoftmax", "separated_cross_entropy"]


def separated_cross_entropy(logits: Tensor, y: Tensor, splits: Sequence[int]) -> Tensor:
    """Cross-entropy among the classes that came together with the sample's own.

    Args:
        logits: (..., C).
        y: class ids (...).
        splits: the first class of each later group, rising: (2, 4) makes groups 0-1, 2-3 and the rest.

    Returns:
        shape (...), in at least float32.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    firsts = torch.tensor(tuple(splits), device=logits.device, dtype=y.dtype)
    group = torch.bucketize(torch.arange(logits.shape[-1], device=logits.device, dtype=y.dtype), firsts, right=True)
    own = torch.bucketize(y, firsts, right=True)
    apart = logits.masked_fill(group != own.unsqueeze(-1), -torch.inf)
    return F.cross_entropy(apart.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)


class SeparatedSoftmax(Method):
    r"""Separated softmax: classes that come together compete among themselves only.

    Computes:
        The cross-entropy of each sample among the classes of its own group: those of one task. Learning a new task then
        pushes no old logit down, and none of classes yet to come; old samples from a rehearsal memory, if there is
        one, compete among their own.

    Formula:
        L = - \log \frac{e^{z_y}}{\sum_{c \in G(y)} e^{z_c}}

    Helps:
        Learning classes one after the other, together with what holds the old ones in place: LwF, WeightAnchor.

    Avoid:
        Alone, and where all classes are at hand: nothing then decides between groups, whose logits are never compared.

    Defaults:
        No split, which is plain cross-entropy.

    Cost:
        One pass.

    Reference:
        Ahn, Kwak, Lim, Bang, Kim, Moon 2021, SS-IL: Separated Softmax for Incremental Learning, arXiv 2003.13947, with
        any number of groups. Without rehearsal it is the cross-entropy over a new head that Smith et al. 2022 (arXiv
        2203.17269) train with.

    Args:
        splits: the first class of each later group, rising: (2, 4) makes groups 0-1, 2-3 and the rest.
    """

    reads = ("y", "logits")
    pretrained = True  # task after task
    replaces = True
    targets = frozenset({"class"})
    null = {"splits": ()}
    example = {"splits": (1,)}

    splits: Sequence[int] = ()

    def check(self) -> None:
        if any(b <= a for a, b in pairwise((0, *self.splits))):
            raise ValueError(f"SeparatedSoftmax: splits must rise and be at least 1, got {tuple(self.splits)}")

    def loss(self, loss: Tensor, step: Step) -> Tensor:
        if not self.splits:
            return loss
        y = step.batch["y"]
        if not is_class_ids(y):
            raise RecipeError("SeparatedSoftmax needs class ids; leave out what mixes or softens targets")
        return separated_cross_entropy(step.out["logits"], y, self.splits)
