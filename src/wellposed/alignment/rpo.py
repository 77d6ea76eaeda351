"""Regularized preference optimization: an SFT term beside the preference loss."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from ..core import Method, Step, knob
from ..core.schedules import Scalar

__all__ = ["RPO", "answer_nll"]

Average = Literal["sequence", "token"]


def answer_nll(log_probs: Tensor, mask: Tensor, average: Average = "sequence") -> Tensor:
    """Negative log-likelihood per token of answers, as rows whose mean is the term.

    Args:
        log_probs: of whole answers, the sum over their tokens, (B,), as ``sequence_log_probs`` gives it.
        mask: (B, T), true at the answer's tokens; the first place never counts, for nothing predicts it.
        average: "sequence": of each answer its mean over tokens. "token": every token of the batch weighs the same, so
            long answers weigh more.

    Returns:
        shape (B,); 0 for an answer without tokens.
    """
    tokens = mask[:, 1:].bool().sum(1)
    if average == "token":
        return -log_probs * (len(tokens) / tokens.sum().clamp(min=1))
    return -log_probs / tokens.clamp(min=1)


class RPO(Method, paper="rpo"):
    r"""Regularized preference optimization: beside the preference loss, imitate the chosen answers.

    Computes:
        strength times the negative log-likelihood of the chosen answer, the mean over its tokens. Added to ``Prefer``,
        whose part works on sums over tokens, it is DPO against an adversarial reward: pessimism about answers that few
        comparisons have seen.

    Formula:
        \rho(y) = \log \pi_\theta(y | x) - \log \pi_{\mathrm{ref}}(y | x)
        \ell = -\log \sigma(\beta \rho(y_w) - \beta \rho(y_l)) - \frac{c}{|y_w|} \log \pi_\theta(y_w | x)

    Helps:
        Long training on preferences that cover the answers unevenly: a rare answer that won its one comparison is
        over-optimised by DPO, and the reward ends below the reference's. There log pi(chosen) fell from -2 to -5.6
        without the term and to -2.1 with it, and the reward stayed.

    Avoid:
        In place of early stopping where the true reward can be watched: against DPO stopped at its best step it gained
        nothing (-0.04 of the reachable reward on the bandit of the claim). Where comparisons cover all answers, or the
        reward generalises from features, it was worse than DPO by 0.05 to 0.5. A large strength is plain fine-tuning.

    Defaults:
        strength 0.005, the authors' with beta 0.01; with beta 0.5 they use 0.2.

    Cost:
        None beyond ``Prefer``: its log-probabilities are used again.

    Reference:
        Liu, Lu, Zhang, Liu, Guo, Yang, Blanchet, Wang 2024, Provably Mitigating Overoptimization in RLHF: Your SFT Loss
        is Implicitly an Adversarial Regularizer, arXiv 2405.16436. There the factor is eta beta and the likelihood is
        of the whole answer; the authors' programs use c as it is and the mean over tokens, as here. ``rpo_alpha`` of
        TRL, which its documentation takes from another paper, is average "token": loss and gradients of a small GPT-2
        were equal to those of TRL 0.19 to 1e-16.

    Args:
        average: "sequence", or "token": every token of the batch weighs the same; microbatches are then exact only if
            they hold equally many.
        strength: the factor c.
    """

    reads = ("chosen_log_probs", "chosen_mask")
    example = {"model": "preference"}

    average: Average = "sequence"
    strength: Scalar = knob(0.005, low=0.0, grid=(0.005, 0.05, 0.2), log=True)

    def check(self) -> None:
        if self.average not in get_args(Average):
            raise ValueError(f"RPO: average must be 'sequence' or 'token', got {self.average!r}")

    def penalty(self, step: Step) -> Tensor:
        return answer_nll(step.out["chosen_log_probs"], step.batch["chosen_mask"], self.average)
