"""Policy gradient: answers that a language model sampled become likelier or less likely, by their reward."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task
from .classify import logits_of
from .masked import masked_mean
from .prefer import token_log_probs
from .targets import conditional_entropy

Average = Literal["sequence", "token", "sum"]


def group_index(group: int | Tensor, rows: int) -> tuple[Tensor, int]:
    """Numbers 0 ... n - 1 of the groups that rows belong to, (rows,), and n.

    Args:
        group: how many neighbouring rows make a group, or a label for each row, (rows,).
        rows: how many there are.

    Raises:
        ValueError: if they do not divide into groups, or the labels are not one for each row.
    """
    if not isinstance(group, Tensor):
        if group < 1 or rows % group:
            raise ValueError(f"{rows} rows do not make groups of {group}")
        return torch.arange(rows).div(group, rounding_mode="floor"), rows // group
    if group.shape != (rows,):
        raise ValueError(f"a group is a label for each of {rows} rows, got shape {tuple(group.shape)}")
    labels, index = torch.unique(group, return_inverse=True)
    return index, len(labels)


def group_advantages(
    rewards: Tensor, group: int | Tensor, *, scale: bool = True, leave_one_out: bool = False
) -> Tensor:
    """How much better each answer's reward is than those of the answers to the same prompt.

    Args:
        rewards: (B,).
        group: G if the answers to one prompt are G neighbouring rows, or a label of the prompt for each row, (B,).
        scale: divide by the group's standard deviation, as GRPO does (Shao et al. 2024, DeepSeekMath, arXiv
            2402.03300, section 4.1), here with G - 1 and plus 1e-4; else prompts whose rewards differ more weigh more.
        leave_one_out: subtract the mean of the others, not of all: the unbiased baseline of REINFORCE (Kool et al.
            2019), G / (G - 1) times the other one.

    Returns:
        shape (B,), without a gradient; 0 in groups of one, and where all rewards are equal.

    Raises:
        ValueError: for rewards of another shape, or that do not divide into groups.
    """
    if rewards.ndim != 1:
        raise ValueError(f"rewards are one number for each answer, (B,), got shape {tuple(rewards.shape)}")
    rewards = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    index, n = group_index(group, len(rewards))
    index = index.to(rewards.device)
    lowest = rewards.new_full((n,), torch.inf).scatter_reduce(0, index, rewards, "amin")
    rewards = (
        rewards - lowest[index]
    )  # equal rewards are exactly 0 now, so that no rounding is divided by a spread of 0

    def mean(values: Tensor) -> Tensor:
        return values.new_zeros(n).index_add(0, index, values) / size

    size = torch.bincount(index, minlength=n)
    others = (size - 1).clamp(min=1)
    away = rewards - mean(rewards)[index]
    spread = (mean(away.square()) * size / others).sqrt()[index]
    if leave_one_out:
        away = away * (size / others)[index]
    return away / (spread + 1e-4) if scale else away


def answer_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy, in nats, of the laws that an answer's tokens were drawn from.

    Args:
        logits: (B, T, V); ``logits[:, t]`` predicts token t + 1.
        mask: (B, T), true at the answer's tokens.

    Returns:
        shape (B,).
    """
    return masked_mean(conditional_entropy(logits[:, :-1]), mask[:, 1:])


class Policy(Task):
    """Policy gradient for a language model: GRPO's clipped surrogate, or REINFORCE.

    ``batch["ids"]`` (B, T) holds prompts and sampled answers, padded on the right; ``batch["mask"]`` (B, T) is true at
    the answers' tokens; ``batch["advantage"]`` is the worth of each answer (B,), from ``group_advantages`` say, or of
    each token (B, T). With clipping ``batch["sampled_log_probs"]`` (B, T) are the tokens' log-probabilities at the time
    they were drawn, and several updates may use one batch. ``wellposed.parts.decoding.generate`` gives the ids, the
    mask and these: sample at temperature 1 and without restrictions, for the ratios compare with the model's own law. A
    model may return logits (B, T, V), or an object with ``.logits``.

    A token costs -min(r A, clip(r, 1 - low, 1 + high) A), r = pi / pi_sampled (Schulman et al. 2017, arXiv 1707.06347,
    Eq. 7), and without clipping -A log pi, plus kl times the estimate ref / pi - log(ref / pi) - 1 of the divergence
    from a reference (Shao et al. 2024, arXiv 2402.03300, Eqs. 3 and 4). Loss and gradients of a small GPT-2 were equal
    to those of TRL 0.19 (its losses grpo and bnpo, here averages "sequence" and "token") to 1e-16.

    Dropout belongs off: answers are sampled without, so that with it ratios differ from 1 before anything was learned.

    Its values are meant for the optimizer: near the sampling policy the surrogate is about minus the mean advantage,
    however well the model does. Watch the rewards.

    Args:
        clip: how far the ratio r pays, below and above 1: a number, or two. None: REINFORCE, of which each update
            needs answers of the present model.
        kl: price of leaving the reference, at least 0.
        reference: the model to stay close to; a frozen copy in eval mode is made now, on its present device (to resume,
            make it before the trained weights are loaded). None: with kl the batch brings ``reference_log_probs``
            (B, T), by ``token_log_probs``.
        average: "sequence": of an answer its mean over tokens (GRPO). "token": every token of the update weighs the
            same, so long answers weigh more. "sum": of an answer the sum, the gradient of its own log-probability
            (REINFORCE; lengths then carry no bias).

    Raises:
        ValueError: for a number out of its range, or a reference without ``kl``.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> from wellposed.parts.decoding import generate
        >>> from wellposed.tasks import group_advantages
        >>> model = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20))
        >>> recipe = Recipe().attach(model, Policy())
        >>> written = generate(model, torch.tensor([[1, 2], [3, 4]]), 5, group=8)   # 8 answers to each of 2 prompts
        >>> reward = (written.ids == 7).sum(1).float()
        >>> batch = {"ids": written.ids, "mask": written.sampled, "sampled_log_probs": written.log_probs}
        >>> batch["advantage"] = group_advantages(reward, 8)
        >>> sorted(recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1)))
        ['task', 'total']
    """

    target = "token"

    def __init__(
        self,
        clip: float | tuple[float, float] | None = 0.2,
        *,
        kl: float = 0.0,
        reference: nn.Module | None = None,
        average: Average = "sequence",
    ) -> None:
        self.clip = (clip, clip) if isinstance(clip, int | float) else clip
        if self.clip is not None and not (0 < self.clip[0] <= 1 and self.clip[1] > 0):
            raise ValueError(f"Policy: clip must be in (0, 1] below and above 0 above, got {clip}")
        if not kl >= 0:
            raise ValueError(f"Policy: kl must be at least 0, got {kl}")
        if reference is not None and kl == 0:
            raise ValueError("Policy: a reference needs kl above 0")
        if average not in get_args(Average):
            raise ValueError(f"Policy: average must be 'sequence', 'token' or 'sum', got {average!r}")
        self.kl, self.average = kl, average
        from ..parts.teacher import frozen_copy  # importing wellposed loads the core and the tasks only

        self.reference = None if reference is None else frozen_copy(reference)
        self.reads = ("ids", "mask", "advantage")
        if self.clip is not None:
            self.reads = (*self.reads, "sampled_log_probs")
        if kl and reference is None:
            self.reads = (*self.reads, "reference_log_probs")
        self.yields = ("logits", "log_probs", "kl") if kl else ("logits", "log_probs")

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """``logits`` as the model gave them, ``log_probs`` of the tokens and their ``kl``, (B, T) each, at the ids."""
        ids, mask = batch["ids"], batch["mask"]
        logits = logits_of(model(ids))
        out = {"logits": logits, "log_probs": token_log_probs(logits, ids, mask)}
        if self.kl:
            if self.reference is None:
                reference = batch["reference_log_probs"].detach()
            else:
                with torch.no_grad():
                    reference = token_log_probs(logits_of(self.reference(ids)), ids, mask)
            ahead = (reference - out["log_probs"]).masked_fill(~_answers(mask), 0)
            out["kl"] = ahead.expm1() - ahead
        return out

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        log_probs, advantage = out["log_probs"], batch["advantage"].detach()
        mask = _answers(batch["mask"])
        worth = advantage if advantage.ndim == 2 else advantage[:, None]
        if self.clip is None:
            costs = -worth * log_probs
        else:
            ratio = (log_probs - batch["sampled_log_probs"].detach()).masked_fill(~mask, 0).exp()
            low, high = self.clip
            costs = -torch.minimum(ratio * worth, ratio.clamp(1 - low, 1 + high) * worth)
        if self.kl:
            costs = costs + self.kl * out["kl"]
        return costs.masked_fill(~mask, 0).sum(1) if self.average == "sum" else masked_mean(costs, mask)

    def weight(self, batch: Batch) -> Tensor | None:
        return _answers(batch["mask"]).sum(1) if self.average == "token" else None

    def reduce(self, values: Tensor, batch: Batch) -> Tensor:
        """Of values at the places of ``logits`` those that predict an answer's token: their mean."""
        return masked_mean(values, F.pad(batch["mask"][:, 1:], (0, 1)))

    def __repr__(self) -> str:
        return f"Policy(clip={self.clip}, kl={self.kl:g}, average={self.average!r})"


def _answers(mask: Tensor) -> Tensor:
    """The places that count: nothing predicts the first token."""
    return F.pad(mask[:, 1:].bool(), (1, 0))
