"""The diagonal of the Fisher information: how much the predictions depend on each weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.modes import evaluating

Labels = Literal["sampled", "predicted"]


@torch.no_grad()
def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Tensor],
    params: Mapping[str, nn.Parameter] | None = None,
    *,
    labels: Labels = "sampled",
    chunk: int = 64,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of log p(label | x), entry by entry.

    Squares are taken sample by sample: the squared gradient of a batch's mean, which much code takes instead, shrinks
    with the batch. The model is looked at in eval mode, where samples do not mix, and left as it was.

    Args:
        model: a classifier that gives logits (B, C); plain PyTorch that ``torch.func.vmap`` can follow.
        batches: inputs (B, ...), without labels.
        params: the weights by name; default all that are trained.
        labels: drawn from the model's prediction, as the Fisher information says (its expectation over labels), or the
            predicted class, which of a confident model gives nearly nothing.
        chunk: samples whose gradients are held at once.
        generator: of the drawn labels.

    Returns:
        by name, at least float32.

    Raises:
        ValueError: without a sample, or for unknown ``labels``.
    """
    if labels not in ("sampled", "predicted"):
        raise ValueError(f"labels must be 'sampled' or 'predicted', got {labels!r}")
    named = dict(params) if params is not None else {n: p for n, p in model.named_parameters() if p.requires_grad}
    weights = {n: p.detach() for n, p in named.items()}
    total = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in weights.items()}

    def nll(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    per_sample = torch.func.vmap(torch.func.grad(nll), in_dims=(None, 0, 0), randomness="different")
    count = 0
    with evaluating(model):
        for batch in batches:
            for x in torch.split(batch, chunk):
                probs = F.softmax(model(x).float(), -1)
                y = (
                    probs.argmax(-1)
                    if labels == "predicted"
                    else torch.multinomial(probs, 1, generator=generator)[:, 0]
                )
                for n, g in per_sample(weights, x, y).items():
                    total[n] += g.to(total[n].dtype).square().sum(0)
                count += len(x)
    if not count:
        raise ValueError("the Fisher information needs at least one sample")
    return {n: t / count for n, t in total.items()}
