"""What the mixing techniques share: who is mixed with whom, in what shares, and targets that can be mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Method, RecipeError, Step, Task
from ..tasks.targets import one_hot

TARGETS = frozenset({"class", "multihot", "real"})
CPU = torch.device("cpu")  # shares and boxes are drawn here, so that no GPU is waited for


def require_classes(method: Method, task: Task) -> None:
    """Raise where class ids would have to be mixed and nobody knows how many classes there are."""
    if task.target == "class" and task.classes is None:
        name, kind = type(method).__name__, type(task).__name__
        raise RecipeError(
            f"{name} mixes targets, so it must know how many classes there are; write {kind}(classes=...)"
        )


def draw_share(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha); in double precision, where small alpha does not underflow."""
    a, b = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    return float(a / (a + b)) if a + b > 0 else 1.0


def draw_mixture(method: Method, step: Step, x: Tensor, alpha: float) -> tuple[Tensor, float]:
    """A partner for every sample, shape (B,), and the share that the sample itself keeps.

    Raises:
        TypeError: if ``x`` holds integers, which cannot be mixed.
    """
    if not torch.is_floating_point(x):
        raise TypeError(f"{type(method).__name__} mixes real inputs, but x holds {x.dtype}; mix embeddings instead")
    generator = step.rng(method, "partners", device=x.device)
    partner = torch.randperm(len(x), generator=generator, device=x.device)
    return partner, draw_share(alpha, step.rng(method, "share", device=CPU))


def real_targets(y: Tensor, x: Tensor, task: Task) -> Tensor:
    """Targets as real numbers: class ids become distributions, shape (B, C)."""
    if torch.is_floating_point(y):
        return y
    dtype = torch.promote_types(x.dtype, torch.float32)
    return one_hot(y, task.classes or 0, dtype) if task.target == "class" else y.to(dtype)
