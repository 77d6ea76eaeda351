"""Structured sparsity with the number of groups set directly: the group sparse envelope and its proximal step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import Scalar
from ..parts.masks import top_mask
from ..parts.proximal import envelope, envelope_shrinkage
from ..weights._layers import CONV, LINEAR, TRANSPOSED, weight_layers

__all__ = ["WGSEF", "group_sparse_envelope", "prox_group_sparse_envelope"]

ROW_LAYERS = LINEAR + tuple(kind for kind in CONV if kind not in TRANSPOSED)  # units along dimension 0


def group_sparse_envelope(rows: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """The convex envelope of half the squared norm of matrices with at most k rows that are not 0.

    Args:
        rows: one group a row, (G, ...).
        k: groups allowed, in 1 ... G.
        weights: d of each group, (G,), above 0; 1 by default.

    Returns:
        1/2 min over 0 <= u <= 1, sum u <= k of sum_g d_g ||W_g||^2 / u_g, a scalar: half the squared k-support norm of
        the lengths where d is 1. Refael, Arbel, Huleihel 2022 (arXiv 2212.12921).
    """
    return envelope(torch.linalg.vector_norm(rows.flatten(1), dim=1), k, weights)


@torch.no_grad()
def prox_group_sparse_envelope(rows: Tensor, k: int, lam: float, weights: Tensor | None = None) -> Tensor:
    """argmin_W 1/2 ||W - V||^2 + lam * ``group_sparse_envelope``(W): every row V_g times u_g / (u_g + lam d_g).

    Args:
        rows: V, (G, ...).
        k: groups that the envelope allows; more remain where lam is small, k where it is large.
        lam: above 0.
        weights: d of each group, (G,).
    """
    norms = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return rows * envelope_shrinkage(norms, k, lam, weights).view(-1, *[1] * (rows.ndim - 1))


class WGSEF(Method, paper="wgsef"):
    r"""Group sparse envelope: train towards k units a layer, k being what you set.

    Computes:
        After every optimizer step the proximal map of lr * strength * envelope, layer by layer; a group is a unit with
        its incoming weights and bias. The envelope is the tightest convex function below half the squared norm of
        weights with at most k units. What is evaluated and shipped has the k largest units, the others are 0.

    Formula:
        GS_k(W) = \tfrac{1}{2} \min_u \left\{ \sum_g d_g \|W_g\|^2 / u_g : 0 \le u_g \le 1, \sum_g u_g \le k \right\}
        W_g \leftarrow V_g \frac{u_g}{u_g + \eta \lambda d_g}, \quad V = W - \eta \nabla L
        u_g = \min( \max( s \sqrt{\eta \lambda d_g} \|V_g\| - \eta \lambda d_g, 0), 1), \quad \sum_g u_g = k

    Helps:
        Removing a chosen number of units or filters: a digits net cut from 64 hidden units to 10 had 91 % of
        the test scans right, one trained plainly and cut by magnitude 62 %.

    Avoid:
        Expecting more accuracy than from a group lasso tuned to the same number of units: a tie. The merit is that k is
        set, not found. Adam-like optimizers: the step belongs to plain gradients. Filters followed by batch
        normalisation lose their scale anyway; only those at 0 are affected.

    Defaults:
        keep 0.5 of the units; strength 0.1, from our runs with SGD and momentum.

    Cost:
        One pass; per layer the lengths of the rows, and a sort of as many numbers.

    Reference:
        Refael, Arbel, Huleihel 2022, Learning k-Level Structured Sparse Neural Networks Using Group Envelope
        Regularization, arXiv 2212.12921. The map is our derivation from the variational form; s is found exactly by
        sorting, where the paper searches. Groups of one layer have one size, so their weights d are 1.

    Args:
        keep: share of a layer's units that remain, in (0, 1]; at least one unit does.
        layers: names of linear layers and convolutions; empty: all but the last.
        strength: factor of the envelope, a number or a schedule; the group's learning rate multiplies it.
    """

    keep: float = knob(0.5, above=0.0, high=1.0, grid=(0.25, 0.5, 0.75))
    layers: Sequence[str] = ()
    strength: Scalar = knob(0.1, low=0.0)

    def setup(self, model: nn.Module, task: Task) -> None:
        able = weight_layers(self, model, ROW_LAYERS)
        able = tuple(n for n in able if isinstance(model.get_submodule(n).weight, nn.Parameter))
        names = tuple(self.layers) or able[:-1] or able
        for name in names or ("a linear layer or convolution",):
            if name not in able:
                raise RecipeError(
                    f"WGSEF needs trainable linear layers or convolutions with a plain weight; the model lacks '{name}'"
                )
        self.names = names
        self.__dict__["model"] = model  # not registered: its weights are not this method's state

    def teardown(self, model: nn.Module) -> None:
        self.__dict__.pop("model", None)

    @torch.no_grad()
    def update(self, step: Step) -> None:
        strength = step.at(self.strength)
        if strength == 0:
            return
        if step.optimizer is None:
            raise ValueError("WGSEF needs the learning rate: call recipe.update(optimizer), or use recipe.step")
        rates = {id(p): float(g["lr"]) for g in step.optimizer.param_groups for p in g["params"]}
        for name in self.names:
            parts = self._parts(step.model.get_submodule(name))
            lam = strength * rates.get(id(parts[0]), 0.0)
            if lam > 0 and parts[0].requires_grad:
                norms = _lengths(parts)
                factor = envelope_shrinkage(norms, self._k(len(norms)), lam)
                for p in parts:
                    p.mul_(_shaped(factor, p))

    @torch.no_grad()
    def evaluation_state(self) -> Mapping[str, Tensor] | None:
        if "model" not in self.__dict__ or self.strength == 0:
            return None
        model: nn.Module = self.__dict__["model"]
        shipped = {}
        for name in self.names:
            parts = self._parts(model.get_submodule(name))
            norms = _lengths(parts)
            kept = top_mask(norms, self._k(len(norms)))
            for kind, p in zip(("weight", "bias"), parts, strict=False):
                shipped[f"{name}.{kind}".lstrip(".")] = p * _shaped(kept, p)
        return shipped

    def _parts(self, layer: nn.Module) -> list[Tensor]:
        """Weight and, where it is trained, bias."""
        weight, bias = layer.weight, layer.bias
        if not isinstance(weight, nn.Parameter):
            raise RecipeError(
                "WGSEF moves parameters, and a method listed after it reparametrises one of "
                f"{', '.join(self.names)}; keep one of the two"
            )
        return [weight, bias] if isinstance(bias, nn.Parameter) and bias.requires_grad else [weight]

    def _k(self, groups: int) -> int:
        return max(1, round(self.keep * groups))


def _lengths(parts: Sequence[Tensor]) -> Tensor:
    """Lengths of the units (G,), all parts together, in at least float32."""
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    return torch.stack([p.to(wide).reshape(len(p), -1).square().sum(1) for p in parts]).sum(0).sqrt()


def _shaped(factor: Tensor, p: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (p.ndim - 1)).to(p.dtype)
