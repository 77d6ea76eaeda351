"""A masked sub-branch that learns from the main one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ..tasks.targets import cross_entropy
from ._dropping import Dropping

__all__ = ["MaskSub", "distillation_loss", "random_mask"]


def random_mask(shape: torch.Size, ratio: float, patch: int, generator: torch.Generator) -> Tensor:
    """Which parts of each input stay, exactly ``ratio`` of them dropped (rounded).

    Args:
        shape: of the inputs: vectors (B, F), whose entries are dropped singly; token embeddings (B, T, D), dropped
            token by token; images (B, ..., H, W), dropped in squares over all channels.
        ratio: share of parts dropped, in [0, 1].
        patch: side of the squares, in pixels; a last row or column of squares may be cut off.
        generator: on the device where the mask is wanted.

    Returns:
        booleans that broadcast to ``shape``.

    Raises:
        ValueError: if ``shape`` has fewer than two dimensions.
    """
    if len(shape) < 2:
        raise ValueError(f"a mask needs inputs of at least two dimensions, got shape {tuple(shape)}")
    image = len(shape) > 3
    grid = tuple(-(-side // patch) for side in shape[-2:]) if image else (shape[1],)
    count = grid[0] * grid[1] if image else grid[0]
    noise = torch.rand(shape[0], count, generator=generator, device=generator.device)
    dropped = noise.topk(round(ratio * count), dim=1, sorted=False).indices
    kept = torch.ones_like(noise, dtype=torch.bool).scatter_(1, dropped, False)
    if not image:
        return kept.view(*kept.shape, *(1,) * (len(shape) - 2))
    kept = kept.view(shape[0], *(1,) * (len(shape) - 3), *grid)
    kept = kept.repeat_interleave(patch, -2).repeat_interleave(patch, -1)
    return kept[..., : shape[-2], : shape[-1]]


def distillation_loss(student: Tensor, teacher: Tensor, multihot: bool = False) -> Tensor:
    """Cross-entropy of ``student`` logits (..., C) to the predictions of ``teacher`` logits, held constant.

    Returns:
        shape (...); with ``multihot`` the mean binary cross-entropy over classes.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if multihot:
        return F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none").mean(-1)
    return cross_entropy(student, teacher.softmax(-1))


class MaskSub(Method, paper="masksub"):
    r"""MaskSub: the net on half of the input learns to say what it says on the whole.

    Computes:
        A second pass of the same net on inputs with a share of their parts zeroed (mode "mask": entries of vectors,
        whole tokens, squares of images) or with dropout after its activations (mode "dropout"), and strength times its
        cross-entropy to the main pass's predictions, which are held constant.

    Formula:
        \ell(f(x), y) - \lambda \sum_{k} q_k \log p_k(m \odot x), \qquad q = p(x) \quad \text{held constant}

    Helps:
        Strong masking without its harm: against training directly on masked inputs, test accuracy on digits rose by
        4 to 6 points. mode="dropout" gained 14 to 17 points at 40 % wrong labels.

    Avoid:
        Masking pixels of small clean images with an MLP: 1 to 2 points worse than plain training. Under wrong labels
        mode="mask" distils memorised labels and loses to direct masking.

    Defaults:
        ratio 0.5 and equal weights of the two branches, the paper's. patch 2 suits small images; vision transformers
        take their token's side (16).

    Cost:
        Two passes.

    Reference:
        Heo, Kim, Yun, Han 2023, Masking meets Supervision: A Strong Learning Alliance, arXiv 2306.11339. The
        paper halves both losses; here the task's keeps weight 1, so with SGD twice the paper's step. Tokens are zeroed,
        not removed; running statistics see the main pass only.

    Args:
        ratio: share of parts masked, or probability of dropping, in [0, 1).
        mode: "mask" or "dropout".
        patch: side of the masked squares of images, in pixels.
        layers: where mode "dropout" drops: names of submodules; empty: all activation modules.
        strength: factor of the sub-branch's loss.
    """

    reads = ("x", "logits")
    targets = frozenset({"class", "multihot", "token"})
    exact = False
    stops = True

    ratio: float = knob(0.5, low=0.0, high=0.99, grid=(0.25, 0.5, 0.75))
    mode: Literal["mask", "dropout"] = "mask"
    patch: int = knob(2, low=1)
    layers: Sequence[str] = ()
    strength: Scalar = knob(1.0, low=0.0)

    def check(self) -> None:
        if self.mode not in ("mask", "dropout"):
            raise ValueError(f"MaskSub: mode must be 'mask' or 'dropout', got {self.mode!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        if self.mode == "dropout":
            self.dropping = Dropping(self.ratio)
            self.dropping.insert(self, model, self.layers)
            self.dropping.on = False

    def teardown(self, model: nn.Module) -> None:
        if self.mode == "dropout":
            self.dropping.remove()

    def penalty(self, step: Step) -> Tensor:
        sub = self._dropped(step) if self.mode == "dropout" else self._masked(step)
        values = distillation_loss(sub, step.out["logits"], step.task.target == "multihot")
        return step.task.reduce(values, step.batch)

    def _masked(self, step: Step) -> Tensor:
        x = step.batch["x"]
        if not torch.is_floating_point(x):
            raise TypeError(f"MaskSub masks real inputs, but x holds {x.dtype}; use mode='dropout'")
        kept = random_mask(x.shape, self.ratio, self.patch, step.rng(self, device=x.device))
        logits: Tensor = step.forward(x=x.masked_fill(~kept, 0.0))["logits"]
        return logits

    def _dropped(self, step: Step) -> Tensor:
        self.dropping.on = True
        try:
            logits: Tensor = step.forward()["logits"]
        finally:
            self.dropping.on = False
        return logits

    def passes(self) -> float:
        return 2.0 if self.strength != 0 else 1.0
