"""Knowledge distillation: a student learns from a teacher's logits, classically or from a transformed teacher."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ..parts.teacher import frozen_copy, said

__all__ = ["TTM", "KnowledgeDistillation", "power_entropy", "softened_loss", "ttm_loss"]


def softened_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Classical distillation: teacher and student both at a temperature.

    Args:
        student, teacher: logits (..., C).
        temperature: T, above 0.

    Returns:
        T^2 KL(p_T || q_T), shape (...); Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2. The factor keeps the
        size of the gradient.
    """
    p, q = F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    return temperature**2 * _divergence(p, q)


def ttm_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0, weighted: bool = False) -> Tensor:
    """Transformed teacher matching: only the teacher has a temperature.

    Args:
        student, teacher: logits (..., C).
        temperature: T, above 0; raises the teacher's probabilities to gamma = 1/T.
        weighted: multiply by sum_j p_j^gamma of the teacher, which is large where it hesitates: from 1 to
            C^(1 - gamma) for T of at least 1.

    Returns:
        KL(p_T || q), shape (...); Zheng, Yang 2024 (arXiv 2402.11148), sections 4 and 5.
    """
    p = F.log_softmax(teacher / temperature, -1)
    found = _divergence(p, F.log_softmax(student, -1))
    if weighted:
        found = found * (F.log_softmax(teacher, -1) / temperature).logsumexp(-1).exp()
    return found


def power_entropy(logits: Tensor, order: float) -> Tensor:
    """Renyi entropy of each prediction, log(sum_j q_j^order) / (1 - order).

    Args:
        logits: (..., C).
        order: above 0, not 1, where it would be Shannon's.

    Returns:
        nats, shape (...), from 0 to log C.

    Raises:
        ValueError: for an order that is not allowed.
    """
    if not order > 0 or order == 1:
        raise ValueError(f"power_entropy needs an order above 0 other than 1, got {order:g}")
    return (order * F.log_softmax(logits, -1)).logsumexp(-1) / (1 - order)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL of distributions given by their logarithms."""
    return (p.exp() * (p - q)).sum(-1)


@torch.no_grad()
def _taught(step: Step, teacher: nn.Module) -> Tensor:
    """The teacher's logits of this batch."""
    logits: Tensor = said(step, teacher)["logits"]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class TTM(Method, paper="ttm-wttm"):
    r"""Transformed teacher matching: distillation in which only the teacher has a temperature.

    Computes:
        strength * KL(p_T || q) beside the task's loss: p_T is the teacher's prediction at temperature T, q the
        student's at temperature 1. weighted=True (WTTM) multiplies every prediction's term by sum_j p_j^(1/T), which
        stresses those where the teacher hesitates.

    Formula:
        p_T = \frac{p^{\gamma}}{\sum_j p_j^{\gamma}}, \qquad \gamma = \frac{1}{T}
        L_{\mathrm{TTM}} = \mathrm{CE}(y, q) + \beta \, \mathrm{KL}(p_T \,\Vert\, q)
        L_{\mathrm{WTTM}} = \mathrm{CE}(y, q) + \beta \, \Big( \sum_j p_j^{\gamma} \Big) \, \mathrm{KL}(p_T \,\Vert\, q)
        \mathrm{CE}(p_T, q) = T \, \mathrm{CE}(p_T, q_T) - (T - 1) \, H_{\gamma}(q)

    Helps:
        Small students: digits, 200 scans, 16 hidden units: about two points over classical distillation in a short
        training. By the last formula it is that plus a bonus on the student's Renyi entropy.

    Avoid:
        Expecting the advantage to last: four times as many epochs left none, the classical form only being slower.
        Where the student's own probabilities count: it becomes under-confident (calibration error +7 to +30 points).
        Data whose mixtures or noise the teacher never saw.

    Defaults:
        T 4 and strength 4, at the lower end of the paper's searches; it tunes strength up to 45 by data and teacher.

    Cost:
        One pass and a forward pass of the teacher.

    Reference:
        Zheng, Yang 2024, Knowledge Distillation Based on Transformed Teacher Matching, arXiv 2402.11148. As in the
        released code the weights are not normalised over the batch, and there is no factor T^2; weighted, the term is
        larger at the same strength.

    Args:
        teacher: a module that the task can run as it runs the model; a frozen copy in eval mode is made now. None: the
            model as it was attached, for learning something new without forgetting what it predicts.
        temperature: T, above 0.
        weighted: WTTM.
        strength: beta of the paper.
    """

    reads = ("logits",)
    targets = frozenset({"class", "token"})
    pretrained = True  # a teacher, or the trained model itself

    teacher: nn.Module | None = dataclasses.field(default_factory=lambda: None)  # a default would hide the submodule
    temperature: float = knob(4.0, above=0.0)
    weighted: bool = False
    strength: Scalar = knob(4.0, low=0.0, grid=(1.0, 4.0, 16.0), log=True)

    def check(self) -> None:
        if self.teacher is not None:
            self.teacher = frozen_copy(self.teacher)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.tutor = (frozen_copy(model) if self.teacher is None else self.teacher).to(next(model.parameters()).device)

    def teardown(self, model: nn.Module) -> None:
        self._modules.pop("tutor", None)

    def penalty(self, step: Step) -> Tensor:
        taught = _taught(step, self.tutor)
        return step.task.reduce(ttm_loss(step.out["logits"], taught, self.temperature, self.weighted), step.batch)

    def passes(self) -> float:
        return 4 / 3


class KnowledgeDistillation(Method):
    r"""Knowledge distillation: the student's softened predictions follow those of a teacher.

    Computes:
        strength * T^2 KL(p_T || q_T) beside the task's loss, both predictions at temperature T.

    Formula:
        L = \mathrm{CE}(y, q) + \beta \, T^2 \, \mathrm{KL}(p_T \,\Vert\, q_T)

    Helps:
        Small models with a better, larger or averaged one at hand.

    Avoid:
        Teachers trained with label smoothing, whose logits say little about similar classes. Data whose mixtures or
        noise the teacher never saw.

    Defaults:
        T 4 and strength 1, usual for image classification.

    Cost:
        One pass and a forward pass of the teacher.

    Reference:
        Hinton, Vinyals, Dean 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2.

    Args:
        teacher: a module that the task can run as it runs the model; a frozen copy in eval mode is made now. None: the
            model as it was attached (Li, Hoiem 2016, Learning without Forgetting, arXiv 1606.09282).
        temperature: T, above 0.
        strength: beta.
    """

    reads = ("logits",)
    targets = frozenset({"class", "token"})
    pretrained = True  # a teacher, or the trained model itself

    teacher: nn.Module | None = dataclasses.field(default_factory=lambda: None)
    temperature: float = knob(4.0, above=0.0)
    strength: Scalar = knob(1.0, low=0.0, grid=(0.3, 1.0, 3.0), log=True)

    def check(self) -> None:
        if self.teacher is not None:
            self.teacher = frozen_copy(self.teacher)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.tutor = (frozen_copy(model) if self.teacher is None else self.teacher).to(next(model.parameters()).device)

    def teardown(self, model: nn.Module) -> None:
        self._modules.pop("tutor", None)

    def penalty(self, step: Step) -> Tensor:
        taught = _taught(step, self.tutor)
        return step.task.reduce(softened_loss(step.out["logits"], taught, self.temperature), step.batch)

    def passes(self) -> float:
        return 4 / 3
