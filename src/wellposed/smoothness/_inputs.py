"""What techniques that look at the input share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Step


def real_input(step: Step, owner: str) -> Tensor:
    """``batch["x"]``, detached.

    Raises:
        TypeError: unless it is a floating-point tensor.
    """
    return real_rows(step.batch["x"], owner)


def real_rows(x: object, owner: str) -> Tensor:
    """``x``, detached; raises TypeError unless it is a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise TypeError(
            f"{owner} moves the input a little, so batch['x'] must be a floating-point tensor, got {found}; "
            "for tokens or categories give the model their embeddings as x"
        )
    return x.detach()


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which to take norms and logarithms: float32 for half precision, else the type itself."""
    return torch.promote_types(dtype, torch.float32)
