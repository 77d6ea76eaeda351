"""SORSA: fine-tune the leading singular values and vectors of a trained weight."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import Scalar
from ..parts.masks import bake, unshared

__all__ = ["SORSA", "SingularAdapter", "orthonormality", "singular_drift"]


def orthonormality(rows: Tensor, eps: float = 1e-6) -> Tensor:
    """Frobenius norm of R R^T - I: (r, D) -> scalar, in at least float32.

    ``eps`` rounds off the tip at orthonormal rows, where the norm has no gradient.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    gram = rows @ rows.T
    off = gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return (off.square().sum() + eps**2).sqrt()


@torch.no_grad()
def singular_drift(before: Tensor, after: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """How far fine-tuning moved the leading singular values and vectors of a weight (out, in).

    Returns:
        mean |s_i' - s_i|, and 1 - mean |<u_i, u_i'> <v_i, v_i'>|: 0 where nothing moved.
    """
    u, s, v = torch.linalg.svd(before, full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(after, full_matrices=False)
    r = min(rank, len(s))
    same = (u[:, :r] * u2[:, :r]).sum(0) * (v[:r] * v2[:r]).sum(1)
    return (s2[:r] - s[:r]).abs().mean(), 1 - same.abs().mean()


class SingularAdapter(nn.Module):
    """Parametrisation W = W_r + B diag(s) A, of which ``left`` B (out, r), ``values`` s, ``right`` A (r, in) train."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        wide = weight.detach().flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        u, s, v = torch.linalg.svd(wide, full_matrices=False)
        self.left = nn.Parameter(u[:, :rank].to(weight.dtype).contiguous())
        self.values = nn.Parameter(s[:rank].to(weight.dtype).clone())
        self.right = nn.Parameter(v[:rank].to(weight.dtype).contiguous())

    def product(self) -> Tensor:
        """B diag(s) A, (out, in)."""
        return (self.left * self.values) @ self.right

    def forward(self, residual: Tensor) -> Tensor:
        """The weight the layer computes with."""
        return residual + self.product().view_as(residual)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """The residual W_r."""
        return weight - self.product().view_as(weight)


class SORSA(Method, paper="sorsa"):
    r"""SORSA: train a weight's leading singular triples, and keep the vectors orthonormal.

    Computes:
        Each chosen layer's weight becomes a frozen rest plus B diag(s) A, its own leading singular triples at the
        start, so that the model computes what it computed. Only B, s and A are trained, and strength times the mean of
        the distances of A A^T and B^T B from the identity holds the factors orthonormal: changes of scale go to s.
        ``finish`` merges everything into plain weights.

    Formula:
        W = W_r + B \, \mathrm{diag}(s) \, A
        R = \frac{1}{2L} \sum_{l=1}^{L} \left( \| A_l A_l^\top - I \|_F + \| B_l^\top B_l - I \|_F \right)

    Helps:
        Fine-tuning a trained model with few trainable numbers. On digits turned by 90 degrees it was 4 to 8 points
        above the same triples trained as two factors (PiSSA) at the same rate.

    Avoid:
        Training from scratch. Expecting accuracy from the regulariser itself: it kept the factors' condition number
        down (1.4 in place of 2.1) and changed accuracy by nothing that could be measured. Comparing with LoRA at one
        learning rate: each wants its own.

    Defaults:
        rank 16, strength 4e-4 (the paper: rank 128 and 4e-4 for a model of 7 billion weights; other runs of the authors
        go up to 0.1); all linear layers.

    Cost:
        One pass; r (in + out + 1) trained numbers a layer; one singular value decomposition a layer at attach; two
        products r^2 (in + out) a step for the penalty.

    Reference:
        Cao 2024, SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large Language
        Models, arXiv 2409.00055. As in the author's code the norms are not squared and the mean is over all factors of
        the model; the tip of the norm at exactly orthonormal factors is rounded off.

    Args:
        rank: triples a layer, at most the smaller side of its weight; 0 leaves the model alone.
        layers: regular expressions of layer names, one of which must match; default all linear layers.
        freeze: whether all other weights are frozen.
        strength: factor of the penalty.
    """

    scope = "params"
    null = {"rank": 0}
    pretrained = True
    example = {"rank": 2, "strength": 0.1}

    rank: int = knob(16, low=0)
    layers: Sequence[str] = ()
    freeze: bool = True
    strength: Scalar = knob(4e-4, low=0.0, grid=(4e-4, 1e-2, 1e-1), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.adapted: tuple[str, ...] = ()
        self._trained = {p: p.requires_grad for p in model.parameters()}
        if not self.rank:
            return
        linear = [
            n
            for n, m in model.named_modules()
            if isinstance(m, nn.Linear) and (not self.layers or any(re.search(p, n) for p in self.layers))
        ]
        self.adapted = unshared(model, linear)
        if not self.adapted:
            raise RecipeError("SORSA adapts linear layers with a weight of their own, and none matches `layers`")
        if self.freeze:
            model.requires_grad_(False)
        for name in self.adapted:
            layer = model.get_submodule(name)
            weight = layer.weight
            assert isinstance(weight, nn.Parameter)
            parametrize.register_parametrization(layer, "weight", SingularAdapter(weight, self.rank))
            original = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
            original.requires_grad_(False)

    def penalty(self, step: Step) -> Tensor | None:
        terms = [
            orthonormality(rows)
            for name in self.adapted
            for adapter in step.model.get_submodule(name).parametrizations["weight"]  # type: ignore[index]
            if isinstance(adapter, SingularAdapter)
            for rows in (adapter.right, adapter.left.T)
        ]
        return torch.stack([t.to(terms[0]) for t in terms]).mean() if terms else None

    def teardown(self, model: nn.Module) -> None:
        bake(model, SingularAdapter)
        names = {id(p): p for p in model.parameters()}
        for p, trained in self._trained.items():
            if id(p) in names:
                p.requires_grad_(trained)
