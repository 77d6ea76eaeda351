"""EATA: adapt on few, reliable samples, and do not forget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.citing import implements
from ..tasks.targets import conditional_entropy
from ._online import MakeOptimizer, OnlineAdaptation

__all__ = ["EATA", "reliable_and_new"]


def reliable_and_new(
    logits: Tensor, mean: Tensor | None, entropy_margin: float, similarity_margin: float
) -> tuple[Tensor, Tensor]:
    """Which samples teach, and with what weight.

    Args:
        logits: (B, C).
        mean: running average of the predictions that taught so far, (C,); None before the first.
        entropy_margin: E0, in nats: above it a prediction is not reliable.
        similarity_margin: largest |cosine| to ``mean`` of a prediction that is still new.

    Returns:
        booleans (B,), and weights exp(E0 - E) (B,), without gradient. Niu et al. 2022 (arXiv 2204.02610), Eqs. 3-5.
    """
    with torch.no_grad():
        energy = conditional_entropy(logits)
        chosen = energy < entropy_margin
        if mean is not None:
            chosen &= (
                F.cosine_similarity(F.softmax(logits.to(energy), -1), mean[None], dim=-1).abs() < similarity_margin
            )
        return chosen, torch.exp(entropy_margin - energy)


@implements("eata")
class EATA(OnlineAdaptation):
    r"""EATA: entropy minimisation on reliable, new samples only, held back where weights matter.

    ``adapted = EATA(model, fisher=fisher_diagonal(model, batches, norm_parameters(model)))``, then as with ``Tent``.

    Computes:
        As Tent, but the mean runs over the samples whose entropy is below a margin and whose prediction differs from
        the average of what taught before, each weighted by exp(margin - entropy); and a quadratic penalty, weighted by
        the Fisher information of the source model, holds scales and shifts near their first values. Without a sample
        that qualifies nothing moves. Without ``fisher`` this is the paper's ETA.

    Formula:
        L = \frac{1}{|S|} \sum_{i \in S} e^{E_0 - H(p_i)} H(p_i) + \beta \sum_j F_j (\theta_j - \theta_j^0)^2
        S = \{ i : H(p_i) < E_0, \; |\cos(p_i, m)| < \epsilon \}

    Helps:
        Long streams, on which Tent drifts and forgets what it knew of clean data.

    Avoid:
        Expecting much over Tent on short, moderate streams: on digits the selection alone changed 0.05 points. beta has
        no scale of its own: the Fisher information of a confident model is tiny, so look at its mean first. With few
        classes the similarity margin must be larger than the default.

    Defaults:
        E0 = 0.4 ln C; similarity margin 0.05, as for ImageNet (0.4 for the 10 classes of CIFAR); beta 2000 (CIFAR: 1);
        Adam 0.001 where the authors take SGD with lr 0.00025 and momentum 0.9 for ImageNet.

    Cost:
        One forward and backward a batch, of the whole batch; memory for one average of C numbers.

    Reference:
        Niu, Wu, Zhang, Chen, Zheng, Zhao, Tan 2022, Efficient Test-Time Model Adaptation without Forgetting, arXiv
        2204.02610, Eqs. 2-8. As in the authors' code the mean is over the selected samples, not the batch; the average
        starts with the first selected batch and moves by a tenth. Their Fisher information squares a batch's mean
        gradient of predicted labels; here it is whatever is handed in, see ``parts.fisher``.

    Args:
        model: a classifier with normalisation layers, trained; (B, ...) to logits (B, C).
        fisher: by the names of ``norm_parameters(model)``, from clean inputs, before this object is made; None: no
            penalty.
        beta: its weight.
        entropy_margin: E0 over ln C, in (0, 1].
        similarity_margin: in (0, 1].
        lr, steps, episodic, optimizer: as in ``Tent``.
    """

    def __init__(
        self,
        model: nn.Module,
        fisher: Mapping[str, Tensor] | None = None,
        beta: float = 2000.0,
        entropy_margin: float = 0.4,
        similarity_margin: float = 0.05,
        lr: float = 1e-3,
        steps: int = 1,
        episodic: bool = False,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        for name, value in (("entropy_margin", entropy_margin), ("similarity_margin", similarity_margin)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value:g}")
        super().__init__(model, lr, steps, episodic, optimizer)
        if fisher is not None and (missing := sorted(set(self.weights) - set(fisher))):
            self.finish()
            raise ValueError(
                f"fisher lacks '{missing[0]}': make it with fisher_diagonal(model, batches, norm_parameters(model))"
            )
        self.beta, self.entropy_margin, self.similarity_margin = beta, entropy_margin, similarity_margin
        self.fisher = fisher
        self.mean: Tensor | None = None
        self.used = self.offered = 0

    def objective(self, logits: Tensor) -> Tensor | None:
        """Weighted entropy of the selected samples, and the penalty."""
        margin = self.entropy_margin * math.log(logits.shape[-1])
        chosen, weight = reliable_and_new(logits, self.mean, margin, self.similarity_margin)
        self.offered += len(chosen)
        if not chosen.any():
            return None
        self.used += int(chosen.sum())
        picked = logits[chosen]
        with torch.no_grad():
            now = F.softmax(picked, -1, dtype=weight.dtype).mean(0)
            self.mean = now if self.mean is None else torch.lerp(self.mean, now, 0.1)
        loss = (weight[chosen] * conditional_entropy(picked)).mean()
        if self.fisher is not None and self.beta:
            held = [(self.fisher[n] * (p - self._source[n]).square()).sum() for n, p in self.weights.items()]
            loss = loss + self.beta * torch.stack(held).sum()
        return loss

    def reset(self) -> None:
        """Back to the source model, the average of predictions forgotten."""
        super().reset()
        self.mean = None

    def get_extra_state(self) -> dict[str, object]:
        """As of ``Tent``, with the average of predictions."""
        return {**super().get_extra_state(), "mean": self.mean, "used": self.used, "offered": self.offered}

    def set_extra_state(self, state: Mapping[str, object]) -> None:
        """Continue from ``state``."""
        super().set_extra_state(state)
        self.mean, self.used, self.offered = state["mean"], state["used"], state["offered"]  # type: ignore[assignment]
