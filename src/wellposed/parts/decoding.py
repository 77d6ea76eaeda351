"""Sampling from causal language models: prompts in, continuations with their log-probabilities out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.modes import evaluating
from ..tasks.classify import logits_of

__all__ = ["Generated", "compacted", "generate", "restricted_log_probs"]


@dataclass(frozen=True)
class Generated:
    """Prompts and what a model wrote after them, R = B * group rows; the rows of one prompt are neighbours.

    Attributes:
        ids: (R, L), from the left: prompt, continuation, padding.
        sampled: (R, L), true at the continuation; a stop token is part of it.
        log_probs: (R, L), of the sampled tokens under the model itself, each given all before it; 0 elsewhere.
        drawn_log_probs: (R, L), the same under the law they were drawn from, with its temperature and restrictions.
        lengths: (R,), tokens of the prompt.
    """

    ids: Tensor
    sampled: Tensor
    log_probs: Tensor
    drawn_log_probs: Tensor
    lengths: Tensor

    def continuations(self, pad: int = 0) -> tuple[Tensor, Tensor]:
        """The continuations by themselves, each from the left: ids (R, N) and where they are tokens (R, N)."""
        count = self.sampled.sum(1, keepdim=True)
        order = torch.arange(int(count.max()), device=self.ids.device)
        real = order < count
        places = (self.lengths[:, None] + order).clamp(max=self.ids.shape[1] - 1)
        return self.ids.gather(1, places).masked_fill(~real, pad), real


def restricted_log_probs(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Log-probabilities of softmax(logits / temperature), restricted to likely tokens and normalised anew.

    Args:
        logits: (..., V).
        temperature: at least 0, finite; 0 is all mass on the likeliest token (of equals the first).
        top_k: keep so many of the likeliest, exactly; None: all.
        top_p: then keep the fewest of the likeliest whose mass reaches this share, in (0, 1]; None: all (Holtzman et
            al. 2019, arXiv 1904.09751).

    Returns:
        (..., V), float32 or wider, -inf where dropped.

    Raises:
        ValueError: for a number out of its range.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # no temperature is so low that this overflows
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k, -1).indices
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept, logits.gather(-1, kept))
    log_probs = logits.log_softmax(-1)
    if top_p is None or top_p == 1:
        return log_probs
    likely, order = log_probs.sort(stable=True, dim=-1, descending=True)
    mass = likely.exp()
    outside = mass.cumsum(-1) - mass >= top_p  # what is likelier reaches the share already
    likely = likely.masked_fill(outside, -torch.inf).log_softmax(-1)
    return torch.empty_like(log_probs).scatter(-1, order, likely)


def compacted(ids: Tensor, mask: Tensor, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Rows with their real tokens first, in order, and ``pad`` after them; with the number of real tokens (B,)."""
    real = mask.bool()
    order = (~real).to(torch.uint8).argsort(stable=True, dim=1)
    return ids.gather(1, order).masked_fill(~real.gather(1, order), pad), real.sum(1)


@torch.no_grad()
def generate(
    model: Callable[..., Any],
    ids: Tensor,
    steps: int,
    *,
    mask: Tensor | None = None,
    group: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Sequence[int] | None = None,
    pad: int = 0,
    generator: torch.Generator | None = None,
) -> Generated:
    """Continue prompts by sampling one token after another.

    The model sees ids only, each row's tokens from place 0 on without a gap: padding, on whichever side, is moved
    behind them, where a causal model does not look. So prompts of different lengths need no attention mask and no
    positions, and a row's continuation has the law it has alone.

    If the model's output has ``past_key_values`` (a Hugging Face transformer's), these are handed back to it with the
    next token, so that nothing is computed twice. It then reads prompts that are longer than the shortest token by
    token, while shorter ones are continued already.

    Args:
        model: causal; ids (R, T) to logits (R, T, V), or to an object with ``.logits`` (a Hugging Face model). A module
            is put into evaluation mode for the time.
        ids: prompts (B, T), each with a token at least: give a start token where there is no prompt.
        steps: tokens to write, at most; at least 1.
        mask: (B, T), true at real tokens; None: all are.
        group: continuations of each prompt.
        temperature, top_k, top_p: as of ``restricted_log_probs``.
        stop: token or tokens that end a continuation, and belong to it.
        pad: a legal id for the places behind a row's end.
        generator: of the draws, on the device of ``ids``.

    Returns:
        ``Generated``, as long as its longest row.

    Raises:
        ValueError: for ids or a mask of the wrong shape, a prompt without tokens, or a number out of its range.
    """
    if ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(f"prompts are ids of shape (B, T), got {ids.dtype} of shape {tuple(ids.shape)}")
    if steps < 1 or group < 1:
        raise ValueError(f"steps and group must be at least 1, got {steps} and {group}")
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    if mask.shape != ids.shape:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}, the ids have {tuple(ids.shape)}")
    prompts, lengths = compacted(ids.repeat_interleave(group, 0), mask.repeat_interleave(group, 0), pad)
    if not len(prompts) or int(lengths.min()) == 0:
        raise ValueError("a prompt without tokens has nothing to continue; begin it with a start token")
    rows, room = torch.arange(len(prompts), device=ids.device), int(lengths.max()) + steps
    text = torch.full((len(prompts), room), pad, dtype=ids.dtype, device=ids.device)
    text[:, : room - steps] = prompts[:, : room - steps]
    sampled = torch.zeros_like(text, dtype=torch.bool)
    stops = None if stop is None else torch.as_tensor(stop, device=ids.device).flatten()
    going = torch.ones_like(rows, dtype=torch.bool)
    scores: tuple[Tensor, Tensor] | None = None
    with evaluating(model) if isinstance(model, nn.Module) else nullcontext():
        for place, logits in _passes(model, text, lengths, steps):
            law = restricted_log_probs(logits, temperature, top_k, top_p)
            token = torch.multinomial(law.exp(), 1, generator=generator)
            now = going & (place >= lengths)
            text[rows, place] = token[:, 0].to(text.dtype).where(now, text[rows, place])
            sampled[rows, place] = now
            scores = scores or (law.new_zeros(text.shape), law.new_zeros(text.shape))
            for kept, of in zip(scores, (restricted_log_probs(logits), law), strict=True):
                kept[rows, place] = of.gather(1, token)[:, 0].where(now, 0)
            last = place + 1 == lengths + steps
            going = going & ~(now & (last if stops is None else last | torch.isin(token[:, 0], stops)))
            if not going.any():
                break
    assert scores is not None
    length = int(sampled.any(0).nonzero().max()) + 1
    return Generated(text[:, :length], sampled[:, :length], scores[0][:, :length], scores[1][:, :length], lengths)


def _passes(model: Callable[..., Any], text: Tensor, lengths: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each row's next place (R,) and its logits (R, V), one after another; the caller writes ``text`` in between."""
    rows, shortest, longest = torch.arange(len(text), device=text.device), int(lengths.min()), int(lengths.max())
    out = model(text[:, :shortest])
    if getattr(out, "past_key_values", None) is None:
        for done in range(steps):
            if done or shortest < longest:
                out = model(text[:, : longest + done])
            yield lengths + done, logits_of(out)[rows, lengths + done - 1]
        return
    for place in range(shortest, longest + steps):
        if place > shortest:
            out = model(text[:, place - 1 : place], past_key_values=out.past_key_values)
        yield torch.full_like(lengths, place), logits_of(out)[:, -1]
