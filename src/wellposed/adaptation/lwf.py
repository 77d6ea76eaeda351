"""Learning without forgetting: the old classes keep the probabilities they had."""

from __future__ import annotations

from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ..objectives.distillation import softened_loss
from ..parts.teacher import frozen_copy, said

__all__ = ["LwF"]


class LwF(Method, paper="rehearsal-free-cl"):
    r"""Learning without forgetting: on new data, predict of the old classes what the model predicted before.

    Attach a recipe for each new task, the model trained on those before: a frozen copy of it is made then.

    Computes:
        strength * T^2 KL(p || q), p the copy's and q the model's prediction among the old classes, both at temperature
        T, on the new task's inputs.

    Formula:
        R = T^2 \, \mathrm{KL} \left( p_{\mathrm{old}} \,\Vert\, p \right), \qquad p = \mathrm{softmax}(f(x)_{1..k} / T)
        p_{\mathrm{old}} = \mathrm{softmax}(f_{\mathrm{old}}(x)_{1..k} / T)

    Helps:
        Learning classes one after the other without old data: five tasks of two digits each ended 13 to
        14 points above fine-tuning, the best of the four penalties against forgetting.

    Avoid:
        Old and new inputs that have nothing in common: the copy is only asked about the new ones. Cross-entropy over
        all classes at once beside it, which pushes the old ones down: see SeparatedSoftmax.

    Defaults:
        T 2, the original paper's; strength 1.

    Cost:
        One pass and a forward pass of the copy.

    Reference:
        Li, Hoiem 2016, Learning without Forgetting, arXiv 1606.09282; compared by Smith, Tian, Halbe, Hsu, Kira 2022, A
        Closer Look at Rehearsal-Free Continual Learning, arXiv 2203.17269. With the factor T^2, which keeps the
        gradient's size.

    Args:
        old: how many logits, the first ones, belong to old classes; None: all.
        temperature: T, above 0.
        strength: factor of the penalty.
    """

    reads = ("logits",)
    targets = frozenset({"class", "token"})
    pretrained = True

    old: int | None = None
    temperature: float = knob(2.0, above=0.0)
    strength: Scalar = knob(1.0, low=0.0, grid=(0.3, 1.0, 3.0), log=True)

    def check(self) -> None:
        if self.old is not None and self.old < 1:
            raise ValueError(f"LwF: old must be at least 1, or None for all classes; got {self.old}")

    def setup(self, model: nn.Module, task: Task) -> None:
        self.previous = frozen_copy(model)

    def teardown(self, model: nn.Module) -> None:
        self._modules.pop("previous", None)

    def penalty(self, step: Step) -> Tensor:
        before, now = said(step, self.previous)["logits"], step.out["logits"]
        if self.old is not None and self.old > now.shape[-1]:
            raise ValueError(f"LwF: old={self.old}, but the model gives {now.shape[-1]} logits")
        return step.task.reduce(
            softened_loss(now[..., : self.old], before[..., : self.old], self.temperature), step.batch
        )

    def passes(self) -> float:
        return 4 / 3
