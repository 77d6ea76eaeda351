"""Stay near the weights one started from: L2 anchor, and with the Fisher information elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import Scalar
from ..weights._snapshot import Snapshot
from ..weights.norm_penalties import squared_l2_norm

__all__ = ["WeightAnchor", "anchored_distance"]


def anchored_distance(
    weights: Sequence[Tensor], anchors: Sequence[Tensor], roots: Sequence[Tensor] | None = None
) -> Tensor:
    """Squared distance of weights from their anchors, a scalar in at least float32.

    Args:
        weights, anchors: tensors of the same shapes.
        roots: square roots of each entry's importance, in the same shapes; all 1 without.
    """
    moved = torch._foreach_sub(list(weights), list(anchors))
    return squared_l2_norm(torch._foreach_mul(moved, list(roots)) if roots is not None else moved)


class WeightAnchor(Method, paper="rehearsal-free-cl"):
    r"""Weight anchor: learn something new near the weights of what was learnt before (L2 anchor, EWC).

    Attach a recipe for each new task, the model trained on those before: its weights at the first step are the anchor.

    Computes:
        strength times the squared distance of the trained weights from where they were at the first step; with
        ``importance`` each entry's square is multiplied by its own. The diagonal of the Fisher information,
        ``parts.fisher.fisher_diagonal(model, batches)`` of the old task, makes it elastic weight consolidation; a mask
        of ones and zeros leaves rows of new classes free.

    Formula:
        R_{\mathrm{L2}} = \sum_j (\theta_j - \theta_j^*)^2
        R_{\mathrm{EWC}} = \sum_j F_j (\theta_j - \theta_j^*)^2
        F_j = E_x \, E_{y \sim p(y | x)} \left( \frac{\partial \log p(y | x)}{\partial \theta_j} \right)^2

    Helps:
        Keeping old abilities without old data; the paper's best recipe anchors the self-attention of a pretrained
        vision transformer alone. With the Fisher information, strength 1000, five tasks of two digits each, one after
        the other, ended 9 points above fine-tuning (LwF: 14).

    Avoid:
        The plain distance in small models trained on little, where it says nothing about predictions: on those digits
        less was forgotten, but less was learnt, too, and accuracy ended 5 to 9 points below fine-tuning (strength 0.01
        and 0.1). Rows of the head for classes that come new: set their importance to 0.

    Defaults:
        strength 1, which suits neither all models nor the Fisher information, whose entries are tiny (100 to 10000
        there): look at its mean first.

    Cost:
        One pass; a copy of the weights (two with ``importance``), three passes over them.

    Reference:
        Smith, Tian, Halbe, Hsu, Kira 2022, A Closer Look at Rehearsal-Free Continual Learning, arXiv 2203.17269;
        Kirkpatrick et al. 2017, Overcoming Catastrophic Forgetting in Neural Networks, arXiv 1612.00796. There is one
        anchor, the latest weights: over several tasks add up the importances, where the latter paper keeps an anchor
        for each task.

    Args:
        weights: patterns of names of the parameters to anchor, such as ``("*attn*",)``; default all that are trained.
        importance: by name of parameter, at least 0, of its shape or one that broadcasts to it; what is not named is
            free. None: all 1.
        strength: factor of the penalty.
    """

    scope = "params"
    pretrained = True

    weights: Sequence[str] = ()
    importance: Mapping[str, Tensor] | None = None
    strength: Scalar = knob(1.0, low=0.0, grid=(0.1, 1.0, 10.0), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for pattern in self.weights:
            if not any(fnmatchcase(n, pattern) for n in params):
                raise RecipeError(
                    f"WeightAnchor: no trained parameter is called '{pattern}'; the model has "
                    f"{', '.join(list(params)[:6])}, ..."
                )
        device = next(model.parameters()).device
        self.anchors, self.roots = Snapshot(device), Snapshot(device)
        if self.importance is None:
            return
        if not self.importance:
            raise RecipeError("WeightAnchor: importance is empty; leave it out to anchor all weights alike")
        roots = {}
        for name, value in self.importance.items():
            if name not in params:
                raise RecipeError(f"WeightAnchor: importance names '{name}', which is no trained parameter")
            wanted = params[name].shape
            if value.ndim > len(wanted) or any(
                a not in (1, b) for a, b in zip(value.shape[::-1], wanted[::-1], strict=False)
            ):
                raise RecipeError(
                    f"WeightAnchor: the importance of '{name}' has shape {tuple(value.shape)}, not {tuple(wanted)}"
                )
            if not bool((value >= 0).all()):
                raise RecipeError(f"WeightAnchor: the importance of '{name}' must be at least 0")
            roots[name] = value.sqrt().to(params[name]).expand(wanted).contiguous()
        self.roots.write(roots)

    def penalty(self, step: Step) -> Tensor | None:
        params, roots = step.params(), self.roots.tensors()
        if step.first and not self.anchors.tensors():
            self.anchors.write({n: p for n, p in params.items() if self._chosen(n, roots)})
        held = {n: a for n, a in self.anchors.tensors().items() if n in params}  # one may have been frozen since
        if not held:
            return None
        return anchored_distance(
            [params[n] for n in held], [*held.values()], [roots[n] for n in held] if roots else None
        )

    def _chosen(self, name: str, roots: Mapping[str, Tensor]) -> bool:
        return (not roots or name in roots) and (
            not self.weights or any(fnmatchcase(name, pattern) for pattern in self.weights)
        )
