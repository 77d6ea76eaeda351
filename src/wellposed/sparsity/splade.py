"""Sparse lexical embeddings: few terms a text, and all terms used about equally often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import SCHEDULES, Scalar, _Schedule
from .prosparse import relu_names

__all__ = ["FLOPS", "QuadraticRise", "expected_flops", "flops_regularizer", "log_saturation", "splade_pooling"]


def flops_regularizer(activations: Tensor) -> Tensor:
    """Sum over terms of the squared mean activation: how much work an inverted index of such vectors costs.

    Args:
        activations: (N, V), one row a text.

    Returns:
        sum_j (mean_n |a_nj|)^2, a scalar in at least float32; Paria et al. 2020 (arXiv 2004.05665), Eq. 4. Of all
        vectors with the same L1 norm those with evenly used terms cost least.
    """
    wide = torch.promote_types(activations.dtype, torch.float32)
    return activations.abs().mean(0, dtype=wide).square().sum()


def log_saturation(logits: Tensor) -> Tensor:
    """log(1 + max(x, 0)), elementwise: no term weighs much more than another."""
    return logits.clamp_min(0).log1p()


def splade_pooling(logits: Tensor, mask: Tensor | None = None, mode: Literal["max", "sum"] = "max") -> Tensor:
    """One sparse vector a text from the vocabulary logits of its tokens.

    Args:
        logits: (B, T, V).
        mask: (B, T), true at tokens, false at padding; all tokens by default.
        mode: "max" over tokens (SPLADE v2), or their "sum" (v1).

    Returns:
        (B, V), at least 0: the log-saturated logits, pooled. The maximum is taken first, which is the same, and a
        logarithm per term in place of one per token and term.
    """
    if mask is not None:
        logits = logits.masked_fill(~mask.bool().unsqueeze(-1), -torch.inf)
    if mode == "max":
        return log_saturation(logits.amax(1))
    if mode == "sum":
        return log_saturation(logits).sum(1)
    raise ValueError(f"splade_pooling: mode must be 'max' or 'sum', got {mode!r}")


@torch.no_grad()
def expected_flops(queries: Tensor, documents: Tensor) -> Tensor:
    """Mean number of multiplications that scoring a document for a query takes: sum_j p_j(q) p_j(d), a scalar.

    Args:
        queries, documents: sparse vectors (N, V) and (M, V); p_j is the share of rows in which term j is not 0.
    """
    return ((queries != 0).double().mean(0) * (documents != 0).double().mean(0)).sum()


@dataclass(frozen=True)
class QuadraticRise(_Schedule):
    """From 0 with the square of progress to ``value`` at ``portion`` of training, then constant."""

    value: float
    portion: float = 0.33

    def __call__(self, progress: float) -> float:
        return self.value * min(1.0, progress / self.portion) ** 2 if self.portion > 0 else self.value


SCHEDULES["QuadraticRise"] = QuadraticRise


class FLOPS(Method, paper="splade"):
    r"""FLOPS regularizer of SPLADE: sparse vectors whose terms are used about equally often.

    Computes:
        strength(t) * sum over terms of the squared mean activation over the batch, for each side (queries, documents)
        or layer by itself, and added up. The strength rises with the square of time, so that terms are learned before
        they are thinned out.

    Formula:
        w_j = \max_i \log(1 + \max(x_{ij}, 0))
        \ell = \lambda(t) \sum_j \left( \frac{1}{N} \sum_n w_j^{(n)} \right)^2
        \lambda(t) = \lambda \min(1, (t/T)^2)

    Helps:
        Inverted indexes: at equal recall terms are used more evenly than with an L1 penalty (entropy of term use
        4.85, the most there can be, against 4.74 on a toy retrieval task with as many active terms), so that
        no posting list is long.

    Avoid:
        Vectors with negative or dense entries: pool with ``splade_pooling`` first. Full strength from the start, which
        may silence every term. Log saturation lowers the largest weights; it did not make indexes cheaper.

    Defaults:
        strength 0.1 after a quadratic rise over a third of training; the paper's lie between 1e-4 and 1e-1 and
        differ for queries and documents: list FLOPS twice, with ``keys`` of one side each.

    Cost:
        One pass; one reading of the activations. Couples the samples of a batch.

    Reference:
        Formal, Piwowarski, Clinchant 2021, SPLADE: Sparse Lexical and Expansion Model for First Stage Ranking,
        arXiv 2107.05720, Eqs. 1 to 6; maximum pooling from SPLADE v2, arXiv 2109.10086.

    Args:
        keys: outputs of the task to penalise, such as ("z1", "z2"), each a side with a mean of its own.
        layers: names of submodules whose outputs are penalised as well. Without keys and layers: "z1" and "z2" where
            the task has them, else all ReLU modules. Tokens and places of an image count as samples.
        strength: factor of the penalty; a schedule needs the length of training.
    """

    scope = "batch"

    keys: Sequence[str] = ()
    layers: Sequence[str] = ()
    strength: Scalar = knob(
        QuadraticRise(0.1), low=0.0, grid=(QuadraticRise(0.01), QuadraticRise(0.1), QuadraticRise(1.0))
    )

    def setup(self, model: nn.Module, task: Task) -> None:
        if missing := [key for key in self.keys if key not in task.yields]:
            raise RecipeError(f"FLOPS needs '{missing[0]}'; task {type(task).__name__} gives {sorted(task.yields)}")
        self.sides, self.taps = tuple(self.keys), tuple(self.layers)
        if not self.sides and not self.taps:
            self.sides = tuple(key for key in ("z1", "z2") if key in task.yields)
            self.taps = () if self.sides else relu_names("FLOPS", model)

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        found = [step.out[key] for key in self.sides] + [step.taps[name] for name in self.taps]
        return torch.stack([flops_regularizer(step.gather(rows_of(a))) for a in found]).sum()


def rows_of(activations: Tensor) -> Tensor:
    """(B, V) as it is, tokens (B, T, V) and places (B, V, H, W, ...) as rows (B T, V)."""
    if activations.ndim > 3:
        activations = activations.movedim(1, -1)
    return activations.reshape(-1, activations.shape[-1])
