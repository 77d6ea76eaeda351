"""Gradient and update slots inside ``optimizer.step(closure)``, for trainers that own the loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .recipe import Recipe


class RecipeOptimizer(torch.optim.Optimizer):
    """An optimizer around another; ``step`` needs a closure that evaluates ``recipe.objective`` and backpropagates.

    Parameter groups, state and state dict are those of the wrapped optimizer, so that learning-rate schedulers and
    checkpoints work as before.
    """

    def __init__(self, recipe: Recipe, inner: torch.optim.Optimizer) -> None:
        self.recipe, self.inner = recipe, inner
        super().__init__([{"params": []}], {})
        del self.__dict__["param_groups"], self.__dict__["state"], self.__dict__["defaults"]

    def __getattr__(self, name: str) -> Any:
        if name in {"param_groups", "state", "defaults"} and "inner" in self.__dict__:
            return getattr(self.inner, name)
        raise AttributeError(name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Raises:
            ValueError: without a closure: a method may need the gradient more than once.
        """
        if closure is None:
            raise ValueError(
                "step needs a closure that computes recipe.objective(...), calls backward, returns the loss"
            )
        recipe, losses = self.recipe, list[Any]()
        step = recipe._begin(self.inner, None)

        def evaluate() -> None:
            self.inner.zero_grad()
            recipe._run.micro, step.first = 0, step.computes == 0  # extra passes repeat the noise of the first
            step.computes += 1
            with torch.enable_grad():
                losses.append(closure())

        compute: Callable[[], None] = evaluate
        for m in reversed(recipe._on["gradient"]):
            compute = partial(m.gradient, compute, step)
        try:
            compute()
            for action in step.deferred.values():
                action()
            self.inner.step()
            recipe.update()
        finally:
            recipe._run.micro, recipe._run.current = 0, None
        return losses[0]
