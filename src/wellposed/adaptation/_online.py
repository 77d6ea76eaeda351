"""What techniques share that adapt a model's normalisation to the stream it is tested on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..core.errors import NonFiniteError

NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Scales and shifts of all normalisation layers, by name."""
    return {
        f"{name}.{key}".lstrip("."): p
        for name, module in model.named_modules()
        if isinstance(module, NORMS)
        for key, p in module.named_parameters(recurse=False)
    }


class OnlineAdaptation(nn.Module, ABC):
    """A classifier that changes its normalisation layers as it predicts: ``logits = adapted(x)``.

    BatchNorm normalises by the batch; all weights but the normalisation's scales and shifts are frozen; the rest of the
    model stays in eval mode. ``finish`` gives the model back.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        steps: int,
        episodic: bool,
        optimizer: MakeOptimizer | None,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.weights = norm_parameters(model)
        if not self.weights:
            raise ValueError(
                f"{type(self).__name__} adapts the scales and shifts of normalisation layers, and the model has none"
            )
        self.model, self.steps, self.episodic, self.seen = model, steps, episodic, 0
        self._modes = [(m, m.training) for m in model.modules()]
        self._trained = [(p, p.requires_grad) for p in model.parameters()]
        self._statistics = [
            (m, m.track_running_stats, {k: getattr(m, k) for k in STATISTICS})
            for m in model.modules()
            if isinstance(m, _BatchNorm)
        ]
        self._source = {n: p.detach().clone() for n, p in self.weights.items()}
        model.eval().requires_grad_(False)
        for m, _, _ in self._statistics:  # without statistics a layer normalises by the batch, in eval mode, too
            m.track_running_stats = False
            for key in STATISTICS:
                setattr(m, key, None)
        chosen = list(self.weights.values())
        for p in chosen:
            p.requires_grad_()
        self.optimizer = optimizer(chosen) if optimizer else torch.optim.Adam(chosen, lr=lr)
        self._fresh = self.optimizer.state_dict()

    @abstractmethod
    def objective(self, logits: Tensor) -> Tensor | None:
        """The scalar whose gradient is followed; None where this batch teaches nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of the last pass before an update, without a graph; the update follows."""
        if self.episodic:
            self.reset()
        logits = x  # for the type checker: there is at least one step
        for _ in range(self.steps):
            with torch.enable_grad():
                logits = self.model(x)
                loss = self.objective(logits)
            if loss is None:
                continue
            if not math.isfinite(loss.item()):
                raise NonFiniteError(self.seen, type(self).__name__, loss.item())
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.seen += 1
        return logits.detach()

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the source model, the optimizer's memory included."""
        for n, p in self.weights.items():
            p.copy_(self._source[n])
        self.optimizer.load_state_dict(self._fresh)

    def finish(self, keep: bool = True) -> nn.Module:
        """The model as it was handed over: modes, frozen weights, running statistics.

        Args:
            keep: whether scales and shifts stay adapted. They were adapted to a batch's statistics; the running ones of
                training come back.
        """
        if not keep:
            self.reset()
        for m, tracked, kept in self._statistics:
            m.track_running_stats = tracked
            for key, value in kept.items():
                setattr(m, key, value)
        for p, trained in self._trained:
            p.requires_grad_(trained)
            p.grad = None
        for module, mode in self._modes:
            module.training = mode
        return self.model

    def get_extra_state(self) -> dict[str, Any]:
        """Optimizer, source weights and count: with the model's own state all that resuming needs."""
        return {"optimizer": self.optimizer.state_dict(), "source": dict(self._source), "seen": self.seen}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._source = {n: t.clone() for n, t in state["source"].items()}
        self.seen = state["seen"]
