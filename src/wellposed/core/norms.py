"""The norm of many tensors as one vector."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor


@torch.no_grad()
def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all entries together, a scalar on the first tensor's device without waiting for it.

    At least float32: the squares of half-precision gradients overflow, and bfloat16 keeps three digits.
    """
    parts = list(tensors)
    if not parts:
        return torch.zeros(())
    dtype = reduce(torch.promote_types, {t.dtype for t in parts}, torch.float32)
    norms = torch._foreach_norm(parts, 2, dtype=dtype)
    return torch.linalg.vector_norm(torch.stack([n.to(parts[0].device) for n in norms]))
