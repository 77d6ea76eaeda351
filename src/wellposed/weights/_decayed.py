"""Which parameters decay: matrices and convolution kernels, never biases, norms or what the user excepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..core import RecipeError


def decayed(params: Mapping[str, nn.Parameter], no_decay: Sequence[str]) -> list[nn.Parameter]:
    """Parameters of two or more dimensions whose name matches no pattern of ``no_decay``."""
    return [p for n, p in params.items() if p.ndim >= 2 and not any(fnmatchcase(n, pattern) for pattern in no_decay)]


def check_decayed(owner: str, model: nn.Module, no_decay: Sequence[str]) -> None:
    """Refuse patterns that match nothing, and models without anything to decay.

    Raises:
        RecipeError: saying which.
    """
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for pattern in no_decay:
        if not any(fnmatchcase(n, pattern) for n, _ in model.named_parameters()):
            raise RecipeError(
                f"{owner}: no parameter is called '{pattern}' (a pattern such as '*.bias' or 'head.*'); "
                f"the model has {', '.join(list(params)[:6])}, ..."
            )
    if not decayed(params, no_decay):
        raise RecipeError(f"{owner} acts on trainable parameters of two or more dimensions, and none is left")
