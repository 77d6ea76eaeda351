"""Shipping the best weights seen, not the last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from ..core import Method, Task, knob
from ._snapshot import Snapshot

__all__ = ["EarlyStopping"]


class EarlyStopping(Method):
    r"""Early stopping: keep the weights with the best validation score, and say when to give up.

    Computes:
        Nothing in training. ``observe(score)`` copies the model as it stands (parameters and buffers) where the score
        is the best so far; after ``patience`` observations without a better one ``exhausted`` is True.
        ``recipe.finish()`` ships the copy.

    Formula:
        w^\star = w_{t^\star}, \qquad t^\star = \mathrm{argmax}_{s \le t} \; \mathrm{score}(w_s)

    Helps:
        Nets that learn what is true first and memorise later: 600 digits with 40 % wrong labels 65 -> 87 %, as much as
        most regularizers gain there, although the validation labels were as wrong.

    Avoid:
        Little data, of which the validation part takes a share. Score the model between updates, not inside
        ``recipe.evaluating()``, which holds the best weights already. Beside EMA one of the two is shipped: the one
        listed last.

    Defaults:
        patience 10 observations, higher scores better.

    Cost:
        One pass; one copy of the model.

    Reference:
        Prechelt 1998, Early Stopping - But When?, Lecture Notes in Computer Science 1524; criterion UP with single
        observations.

    Args:
        patience: observations without a better score before giving up.
        mode: "max" where higher scores are better, "min" for losses.
    """

    null = {}

    patience: int = knob(10, low=1)
    mode: Literal["max", "min"] = "max"

    def check(self) -> None:
        if self.mode not in ("max", "min"):
            raise ValueError(f"EarlyStopping: mode must be 'max' or 'min', got {self.mode!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        self.best_score, self.waited = -math.inf, 0
        self.best = Snapshot(next(model.parameters()).device)
        self.__dict__["model"] = model  # not registered: its weights are not this method's state

    def observe(self, score: float | Tensor) -> bool:
        """Show the score of the model as it stands. Returns whether it is the best so far.

        Raises:
            RuntimeError: before the recipe is attached.
        """
        if "model" not in self.__dict__:
            raise RuntimeError("EarlyStopping.observe needs a model: attach the recipe first")
        value = float(score) if self.mode == "max" else -float(score)
        if not value > self.best_score:  # NaN included
            self.waited += 1
            return False
        self.best_score, self.waited = value, 0
        model: nn.Module = self.__dict__["model"]
        saved = model.state_dict().keys()
        self.best.write({n: t for n, t in [*model.named_parameters(), *model.named_buffers()] if n in saved})
        return True

    @property
    def exhausted(self) -> bool:
        """Whether the last ``patience`` observations brought nothing better."""
        return self.waited >= self.patience

    def evaluation_state(self) -> Mapping[str, Tensor]:
        return self.best.tensors()

    def teardown(self, model: nn.Module) -> None:
        self._modules.pop("best", None)
        self.__dict__.pop("model", None)

    def get_extra_state(self) -> dict[str, Any]:
        """The best score and how long ago it was."""
        return {"best_score": getattr(self, "best_score", -math.inf), "waited": getattr(self, "waited", 0)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.best_score, self.waited = state["best_score"], state["waited"]
