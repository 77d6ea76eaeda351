"""What the claims about text share: English letters, a causal and a bidirectional transformer that learn them in
seconds, and bits per character.

The text is Python's own reference manual, so there is nothing to download; it changes a little with the version.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core import Method, Recipe, Task
from ..core.modes import evaluating
from ..core.task import Batch
from ..tasks import NextToken
from ..tasks.classify import logits_of
from ..tasks.targets import cross_entropy
from .nets import Transformer, blocks, seeded

Net = TypeVar("Net", bound=nn.Module)
SYMBOLS = " abcdefghijklmnopqrstuvwxyz"
BLANK = len(SYMBOLS)
"""The id beside the symbols: start of a text to the causal model, hidden place to the bidirectional one."""
VOCABULARY = BLANK + 1
WORDS = "letters and spaces of Python's reference manual, 27 symbols, no paragraph twice"


# ---- data
@dataclass(frozen=True)
class Text:
    """Ids of training and test text, (N,) and (M,), from different chapters."""

    train: Tensor
    test: Tensor


def encoded(text: str) -> Tensor:
    """Ids (N,) of the letters of a text, lower case; everything between them is one space."""
    letters = " ".join(re.findall("[a-z]+", text.lower()))
    return torch.tensor([SYMBOLS.index(c) for c in letters], dtype=torch.long)


def decoded(ids: Tensor) -> str:
    """The text of ids (N,); ``BLANK`` is an underscore."""
    return "".join((SYMBOLS + "_")[i] for i in ids.tolist())


@cache
def chapters() -> tuple[Tensor, ...]:
    """Ids of the manual's chapters, about 300 000 in 70; a paragraph counts where it comes first."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    found = []
    for name in sorted(topics):
        fresh = []
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            words = " ".join(re.findall("[a-z]+", paragraph.lower()))
            if words and words not in seen:
                seen.add(words)
                fresh.append(words)
        if fresh:
            found.append(encoded(" ".join(fresh)))
    return tuple(found)


def manual(seed: int, test: float = 0.2) -> Text:
    """Chapters in the seed's order, the last of them for testing: about the share ``test`` of all characters."""
    order = torch.randperm(len(chapters()), generator=torch.Generator().manual_seed(seed))
    parts = [chapters()[i] for i in order.tolist()]
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    cut = int((ends <= (1 - test) * ends[-1]).sum())
    return Text(torch.cat(parts[:cut]), torch.cat(parts[cut:]))


def windows(ids: Tensor, length: int, rows: int, generator: torch.Generator) -> Tensor:
    """Random stretches (rows, length) of a text."""
    starts = torch.randint(len(ids) - length + 1, (rows, 1), generator=generator)
    return ids[starts + torch.arange(length)]


def sections(ids: Tensor, length: int) -> Tensor:
    """A text cut into (N / length, length); the rest is left out."""
    return ids[: len(ids) // length * length].view(-1, length)


def next_letter(ids: Tensor) -> Batch:
    """A batch of ``NextToken`` in which every letter of ``ids`` (B, T) is predicted, the first after ``BLANK``."""
    return {"x": torch.cat([torch.full_like(ids[:, :1], BLANK), ids[:, :-1]], 1), "y": ids}


# ---- models and training
class CausalTransformer(nn.Module):
    """A transformer in which every place sees itself and those before: ids (B, T) to logits (B, T, outputs).

    Args:
        length: T, at most.
        ids: size of the vocabulary.
        outputs: of the head; the vocabulary by default.
        width, depth, heads, dropout: of the blocks.
    """

    def __init__(
        self,
        length: int = 64,
        ids: int = VOCABULARY,
        *,
        outputs: int | None = None,
        width: int = 48,
        depth: int = 2,
        heads: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(ids, width)
        self.place = nn.Parameter(torch.randn(length, width))  # as large as the embedding of ids
        self.blocks = blocks(width, depth, heads, dropout)
        self.head = nn.Linear(width, outputs or ids)

    def states(self, x: Tensor) -> Tensor:
        """Representations of the places, (B, T, width)."""
        tokens = self.embed(x)
        length = tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        return self.blocks(tokens + self.place[:length], mask=later, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.states(x))


def causal(seed: int, length: int = 64, **how: Any) -> CausalTransformer:
    """A causal transformer over letters with weights of this seed; ``how`` as of the class."""
    return seeded(seed, CausalTransformer, length, **how)


def bidirectional(seed: int, length: int = 64, **how: Any) -> Transformer:
    """A transformer over letters in which every place sees all, with weights of this seed; logits of ``VOCABULARY``."""
    return seeded(seed, Transformer, length, VOCABULARY, ids=VOCABULARY, **{"width": 48, **how})


def learned(
    model: Net,
    ids: Tensor,
    *methods: Method,
    task: Task | None = None,
    batch: Callable[[Tensor, torch.Generator], Batch] | None = None,
    seed: int,
    steps: int,
    length: int = 64,
    rows: int = 16,
    lr: float = 1e-2,
) -> Net:
    """Train on random stretches of a text, with AdamW and a rate that falls to 0, and return the model in eval mode.

    Args:
        model: trained in place.
        ids: of the text, (N,).
        methods: of the recipe, in order.
        task: ``NextToken`` by default.
        batch: from stretches (rows, length) and a generator; ``next_letter`` by default.
        seed: of the stretches and all noise.
        steps, length, rows, lr: of the training.
    """
    recipe = Recipe(*methods, seed=seed).attach(model, task or NextToken(classes=VOCABULARY), steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1_000_000)
    model.train()
    for _ in range(steps):
        stretch = windows(ids, length, rows, order)
        recipe.step(batch(stretch, noise) if batch else next_letter(stretch), optimizer)
        falling.step()
    recipe.finish()
    return model.eval()


@torch.no_grad()
def bits_per_letter(model: nn.Module, ids: Tensor, length: int = 64) -> float:
    """Mean code length of a causal model's letters, each section of the text by itself."""
    batch = next_letter(sections(ids, length))
    with evaluating(model):
        logits = torch.cat([logits_of(model(x)) for x in batch["x"].split(64)])
    return float(cross_entropy(logits, batch["y"]).mean()) / math.log(2)
