"""Optimizer state that survives saving to the bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class ExactState(torch.optim.Optimizer):
    """An optimizer that loads its state in the types it was saved in.

    ``torch.optim`` casts state to the parameter's type: what half-precision weights keep in float32 loses digits.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ``torch.optim`` does, but without casts."""
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(ids, params, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                self.state[p][key] = _on(value, p.device)


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    return [_on(v, device) for v in value] if isinstance(value, list) else value


def refuse_sparse(owner: str, grads: Iterable[Tensor | None]) -> None:
    """Raise RuntimeError for a sparse or complex gradient."""
    if any(g is not None and (g.is_sparse or g.is_complex()) for g in grads):
        raise RuntimeError(f"{owner} works with dense real gradients; for sparse ones use torch.optim.SparseAdam")
