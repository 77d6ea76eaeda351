"""Weights of constant length, so that logits cannot grow instead of the net learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ._matrices import NORMS, places
from ._snapshot import Snapshot

__all__ = ["LAWN", "project_tangent", "rescale"]


def project_tangent(direction: Tensor, weight: Tensor) -> Tensor:
    """The part of ``direction`` along which the length of ``weight`` does not change: d - (d . w) w / ||w||^2.

    The whole of it where the weight is zero. Any equal shapes; a tensor is one vector.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    d, w = direction.to(wide), weight.to(wide)
    square = w.square().sum()
    share = torch.where(square > 0, (d * w).sum() / square, 0.0)
    return (d - share * w).to(direction.dtype)


def rescale(weight: Tensor, length: Tensor) -> Tensor:
    """``weight`` with the Euclidean norm ``length``, as one vector; as it is where ``length`` is 0."""
    norm = torch.linalg.vector_norm(weight, dtype=length.dtype)
    return weight * torch.where(length > 0, length / norm, 1.0).to(weight.dtype)


class LAWN(Method, paper="lawn"):
    r"""Logit attenuating weight normalization: after a free start every weight tensor keeps its length.

    Computes:
        Nothing for the first ``free`` of training. Then c = ||w|| is fixed for each constrained tensor, the optimizer
        forgets its statistics of them, and in each update the gradient loses its part along w, the optimizer's move
        loses its part along w, and the result is scaled back to c. Biases and gains stay free.

    Formula:
        g \leftarrow g - \frac{g \cdot w}{\|w\|^2} w, \qquad d \leftarrow d - \frac{d \cdot w}{\|w\|^2} w, \qquad w \leftarrow c \frac{w - \eta d}{\|w - \eta d\|}

    Helps:
        Adam with large batches and many epochs under wrong labels, where plain training inflates logits and memorises.

    Avoid:
        Small batches, where nothing was gained, and as a rival of weight decay: against the best decay of a grid the
        gain was a tie. Where probabilities matter: under wrong labels they came out too timid (ECE 24 points instead of
        7). Leave the optimizer's own weight_decay at 0. Logits are not bounded by it: biases and inputs are
        free.

    Defaults:
        free 0.1. The paper warms the rate up in each phase; that is the schedule's business.

    Cost:
        One pass; a copy of the constrained weights during the optimizer's step, and six passes over them.

    Reference:
        Gupta, Ramanath, Shi, Ramachandran, Zhou, Zhou, Keerthi 2021, Logit Attenuating Weight Normalization,
        arXiv 2108.05839. No code of the authors was found: that the length is that of a whole tensor, not of a row, and
        that the optimizer starts afresh at the switch, are our readings.

    Args:
        free: share of training without constraint, in [0, 1]; at 1 nothing is ever constrained.
        layers: patterns of names of the layers to constrain, such as ``("head.*",)``; by default the linear layers,
            convolutions and attention projections after the model's last normalisation layer, all if it has none.
    """  # noqa: E501

    null = {"free": 1.0}
    stops = True  # the gradient's part along the weight is left out

    free: float = knob(0.1, low=0.0, high=1.0, grid=(0.05, 0.1, 0.3))
    layers: Sequence[str] = ()

    def setup(self, model: nn.Module, task: Task) -> None:
        weights = {f"{p.layer}.{p.name}".lstrip("."): p.layer for p in places(self, model)}
        names = [n for n, _ in model.named_modules()]
        if self.layers:
            for pattern in self.layers:
                if not any(fnmatchcase(n, pattern) for n in weights.values()):
                    raise RecipeError(
                        f"LAWN: no layer with a trained matrix is called '{pattern}'; the model has "
                        f"{', '.join(list(weights.values())[:6])}, ..."
                    )
            chosen = [w for w, n in weights.items() if any(fnmatchcase(n, pattern) for pattern in self.layers)]
        else:
            last = max((i for i, m in enumerate(model.modules()) if isinstance(m, NORMS)), default=-1)
            chosen = [w for w, n in weights.items() if names.index(n) > last]
        if not chosen:
            raise RecipeError("LAWN found no matrix after the model's last normalisation layer; name layers=")
        self.edits = tuple(chosen)
        self.lengths = Snapshot(next(model.parameters()).device)
        self.before: list[Tensor] = []

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        compute()
        if self.free >= 1:
            return
        if step.progress is None:
            raise ValueError(
                "LAWN(free=...) is a share of training and needs to know how far training is: "
                "pass steps=<number of updates> to attach, or progress= to step"
            )
        if step.progress < self.free:
            return
        weights = self._weights(step)
        if not self.lengths.tensors():
            wide = {n: torch.promote_types(w.dtype, torch.float32) for n, w in weights.items()}
            self.lengths.write({n: torch.linalg.vector_norm(w.detach(), dtype=wide[n]) for n, w in weights.items()})
            step.defer(self, partial(self._begin, step))
        else:
            step.defer(self, partial(self._keep, step))
        with torch.no_grad():
            for w in weights.values():
                if w.grad is not None:
                    w.grad.copy_(project_tangent(w.grad, w))

    @torch.no_grad()
    def update(self, step: Step) -> None:
        before, self.before = self.before, []
        for (name, w), old in zip(self._weights(step).items(), before, strict=bool(before)):
            w.copy_(rescale(old + project_tangent(w - old, old), self.lengths.tensors()[name]))

    def _begin(self, step: Step) -> None:
        """The optimizer forgets what it knows of the constrained weights."""
        assert step.optimizer is not None
        for w in self._weights(step).values():
            step.optimizer.state.pop(w, None)
        self._keep(step)

    def _keep(self, step: Step) -> None:
        self.before = [w.detach().clone() for w in self._weights(step).values()]

    def _weights(self, step: Step) -> dict[str, nn.Parameter]:
        params = step.params()
        return {n: params[n] for n in self.edits if n in params}  # one may have been frozen since
