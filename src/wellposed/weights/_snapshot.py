"""A copy of some of a model's tensors, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot(nn.Module):
    """Named tensors that appear with the first ``write`` or with a state dict, and are saved with it.

    Names are those of the model at the time of writing: methods set up later may have reparametrised it.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy ``values``; the names must not change from one write to the next."""
        if not self._buffers:
            for name, value in values.items():
                self.register_buffer(name.replace(".", "/"), value.detach().clone())
        elif values:
            torch._foreach_copy_(list(self.tensors().values()), [values[n] for n in self.tensors()])

    def tensors(self) -> dict[str, Tensor]:
        """What was written, in order; empty before."""
        return {n.replace("/", "."): b for n, b in self._buffers.items() if b is not None}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for key, value in state_dict.items():
            if key.startswith(prefix) and key.removeprefix(prefix) not in self._buffers:
                self.register_buffer(key.removeprefix(prefix), torch.empty_like(value, device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
