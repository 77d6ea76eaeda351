"""Preferences: of two answers, make the chosen one likelier (DPO)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task
from .classify import logits_of
from .targets import cross_entropy


def token_log_probs(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each masked token, given all tokens before it; 0 at the others.

    Args:
        logits: (B, T, V); ``logits[:, t]`` predicts ``ids[:, t + 1]``, so the first token is never counted.
        ids: (B, T), legal ids also at padding.
        mask: (B, T), true at the tokens that count (the answer, not the prompt nor padding).

    Returns:
        shape (B, T), in float32 or wider.

    Raises:
        ValueError: if the mask has another shape than the ids.
    """
    if mask.shape != ids.shape:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}, the ids have {tuple(ids.shape)}")
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return F.pad(-cross_entropy(wide, ids[:, 1:].long()).masked_fill(~mask[:, 1:].bool(), 0), (1, 0))


def sequence_log_probs(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of the masked tokens of each sequence: the sum of ``token_log_probs``, shape (B,)."""
    return token_log_probs(logits, ids, mask).sum(1)


def dpo_loss(margin: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - s) log sigmoid(beta margin) - s log sigmoid(-beta margin), elementwise.

    ``margin`` is log pi(chosen) / ref(chosen) - log pi(rejected) / ref(rejected); Rafailov et al. 2023, arXiv
    2305.18290, Eq. 7, with a share s of preferences that may be the wrong way round (Mitchell 2023, conservative DPO).
    """
    certain = -F.logsigmoid(beta * margin)
    if label_smoothing == 0:
        return certain
    return (1 - label_smoothing) * certain - label_smoothing * F.logsigmoid(-beta * margin)


class Prefer(Task):
    """Direct preference optimisation of a language model.

    ``batch["chosen"]`` and ``batch["rejected"]`` hold ids (B, T) of prompt and answer, both padded on the right to the
    same T, and ``batch["chosen_mask"]`` and ``batch["rejected_mask"]`` (B, T) are true at the answer's tokens. Both go
    through the model in one pass; it sees the ids only, so that padding on the left would be read as text. What the
    reference model thinks comes from ``reference``, or from the batch, computed beforehand by ``sequence_log_probs``:
    ``batch["reference_chosen"]`` and ``batch["reference_rejected"]`` (B,).

    Args:
        reference: the model to stay close to; a frozen copy in eval mode is made now, on its present device (to resume,
            make it before the trained weights are loaded). None: the batch brings its log-probabilities.
        beta: how dear it is to leave the reference; above 0.
        label_smoothing: share of preferences taken to be the wrong way round, in [0, 0.5).
        reference_free: a uniform reference; the batch then brings none.

    Raises:
        ValueError: for a number out of its range, or a reference together with ``reference_free``.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> model = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20))
        >>> recipe = Recipe().attach(model, Prefer(model, beta=0.1))
        >>> answer = torch.arange(6).expand(8, 6) >= 2           # two tokens of prompt
        >>> batch = {"chosen": torch.randint(20, (8, 6)), "chosen_mask": answer}
        >>> batch |= {"rejected": torch.randint(20, (8, 6)), "rejected_mask": answer}
        >>> terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> round(terms["task"].item(), 4)                       # log 2: the model is still its reference
        0.6931
    """

    yields = ("chosen_log_probs", "rejected_log_probs", "margin")

    def __init__(
        self,
        reference: nn.Module | None = None,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        reference_free: bool = False,
    ) -> None:
        if not beta > 0:
            raise ValueError(f"Prefer: beta must be above 0, got {beta}")
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"Prefer: label_smoothing must be in [0, 0.5), got {label_smoothing}")
        if reference is not None and reference_free:
            raise ValueError("Prefer: give a reference or reference_free=True, not both")
        self.beta, self.label_smoothing, self.reference_free = beta, label_smoothing, reference_free
        from ..parts.teacher import frozen_copy  # importing wellposed loads the core and the tasks only

        self.reference = None if reference is None else frozen_copy(reference)
        given = ("reference_chosen", "reference_rejected") if reference is None and not reference_free else ()
        self.reads = ("chosen", "rejected", "chosen_mask", "rejected_mask", *given)

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        if batch["chosen"].shape != batch["rejected"].shape:
            raise ValueError(
                f"Prefer: chosen has shape {tuple(batch['chosen'].shape)}, rejected {tuple(batch['rejected'].shape)}; "
                "pad both to one length"
            )
        chosen, rejected = self._log_probs(model, batch)
        margin = chosen - rejected
        if self.reference is not None:
            with torch.no_grad():
                reference_chosen, reference_rejected = self._log_probs(self.reference, batch)
            margin = margin - (reference_chosen - reference_rejected)
        elif not self.reference_free:
            known = (batch["reference_chosen"] - batch["reference_rejected"]).detach()
            if known.shape != margin.shape:  # (B, 1) would be subtracted from every row
                raise ValueError(
                    f"Prefer: reference_chosen and reference_rejected are (B,) = {tuple(margin.shape)}, "
                    f"got {tuple(known.shape)}"
                )
            margin = margin - known
        return {"chosen_log_probs": chosen, "rejected_log_probs": rejected, "margin": margin}

    def _log_probs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        ids = torch.cat([batch["chosen"], batch["rejected"]])
        mask = torch.cat([batch["chosen_mask"], batch["rejected_mask"]])
        chosen, rejected = sequence_log_probs(logits_of(model(ids)), ids, mask).chunk(2)
        return chosen, rejected

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        return dpo_loss(out["margin"], self.beta, self.label_smoothing)

    def __repr__(self) -> str:
        free = ", reference_free=True" if self.reference_free else ""
        return f"Prefer(beta={self.beta:g}, label_smoothing={self.label_smoothing:g}{free})"
