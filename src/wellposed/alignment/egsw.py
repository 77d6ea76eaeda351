"""Entropy-guided sequence weighting: within a group, answers of high advantage and high entropy lead the update."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import implements
from ..tasks.policy import group_index

__all__ = ["entropy_guided_advantages", "entropy_guided_weights"]


def entropy_guided_weights(
    advantage: Tensor, entropy: Tensor, group: int | Tensor, alpha: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """softmax over each group of (advantage + alpha entropy) / temperature.

    Args:
        advantage: of each answer, (B,), as ``group_advantages`` gives it.
        entropy: of each answer's tokens, (B,), as ``answer_entropy`` gives it. What all answers of a group share
            cancels.
        group: G if the answers to one prompt are G neighbouring rows, or a label of the prompt for each row, (B,).
        alpha: weight of the entropy; below 0 sure answers lead.
        temperature: above 0; the higher, the more equal the weights.

    Returns:
        shape (B,), no gradient; the weights of a group sum to 1.

    Raises:
        ValueError: for shapes that do not fit, or a temperature that is not positive.
    """
    if advantage.ndim != 1 or advantage.shape != entropy.shape:
        raise ValueError(
            "advantage and entropy are one number for each answer, (B,), "
            f"got {tuple(advantage.shape)} and {tuple(entropy.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature:g}")
    index, n = group_index(group, len(advantage))
    score = ((advantage + alpha * entropy) / temperature).detach()
    index = index.to(score.device)
    top = score.new_full((n,), -torch.inf).scatter_reduce(0, index, score, "amax")
    raw = (score - top[index]).exp()
    return raw / raw.new_zeros(n).index_add(0, index, raw)[index]


@implements("egsw")
def entropy_guided_advantages(
    advantage: Tensor, entropy: Tensor, group: int | Tensor, alpha: float = 1.0, temperature: float = 1.0
) -> Tensor:
    r"""Entropy-guided sequence weighting: advantages times G w, with w a softmax over the group.

    Computes:
        Of each answer its advantage times the size of its group times the softmax, over the group, of
        (advantage + alpha entropy) / temperature. A clipped surrogate is linear in the advantage's size, so ``Policy``
        on these advantages is the weighted objective; a KL term stays outside. The weights of a group average 1, so a
        high temperature leaves the advantages as they were.

    Formula:
        w_i = \frac{\exp((A_i + \alpha H_i) / P)}{\sum_{j=1}^{G} \exp((A_j + \alpha H_j) / P)}
        \ell = - \sum_{i=1}^{G} \frac{w_i}{|o_i|} \sum_t \min(r_{it} A_i, \mathrm{clip}(r_{it}, 1 \pm \epsilon) A_i)

    Helps:
        Compared with the same weights without entropy, on sparse rewards: with one right answer in 64 the reward after
        300 updates was 0.99 with alpha 2, 0.92 with alpha 0 (each answer's entropy estimated by its own -log p).

    Avoid:
        As a gain over GRPO: there GRPO ended at 0.96 at the same learning rate and at 0.994 at four times the rate. The
        weights are a matter of step size: a good answer's advantage is multiplied by its own softmax, a rare answer's
        by its entropy. The policy's entropy fell faster than GRPO's, not slower (after 50 updates 2.0 nats, of 4.1).
        Where all answers of a group have the same entropy alpha does nothing.

    Defaults:
        alpha 1, temperature 1, a guess: scale alpha so that the entropies differ within a group as the advantages do.

    Cost:
        The entropies: a softmax over logits that sampling or the pass before the update has anyway.

    Reference:
        Vanlioglu 2025, Entropy-guided sequence weighting for efficient exploration in RL-based LLM fine-tuning, arXiv
        2503.22456. Taken from the abstract and summaries: that the entropy is the mean over an answer's tokens, that
        the weights carry no gradient, and the factor G, without which steps are G times shorter, are readings of ours.

    Args:
        advantage: of each answer, (B,).
        entropy: of each answer's tokens, (B,).
        group: G if the answers to one prompt are G neighbouring rows, or a label of the prompt for each row, (B,).
        alpha: weight of the entropy.
        temperature: P, above 0.

    Returns:
        shape (B,).

    Raises:
        ValueError: for shapes that do not fit, or a temperature that is not positive.
    """
    weights = entropy_guided_weights(advantage, entropy, group, alpha, temperature)
    index, n = group_index(group, len(advantage))
    index = index.to(advantage.device)
    return advantage * weights * torch.bincount(index, minlength=n)[index]
