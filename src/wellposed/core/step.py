"""Step: the facts of the update under way, and the safe verbs that methods use."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .parallel import frozen_statistics, gather, rank
from .schedules import Scalar
from .task import Batch, Outputs, Task

if TYPE_CHECKING:
    from .method import Method
    from .recipe import Recipe


class Step:
    """What every slot is handed.

    Attributes:
        count: updates finished before this one.
        progress: share of training done, in [0, 1]; None where nobody said how long training is.
        micro: number of the microbatch within the update.
        first: False in the extra passes of an update (SAM's second gradient); stateful methods write only when True.
        batch, out: the batch after the ``batch`` slot, the outputs after the ``outputs`` slot.
        taps: outputs of the tapped submodules by name.
        terms: every term of the objective so far, detached.
        optimizer: the optimizer of this update, None inside ``Recipe.objective``.
        alone: whether the update is known to be one batch on one rank, so that its objective is the whole one.
    """

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer | None, progress: float | None) -> None:
        self.recipe, self.optimizer, self.progress = recipe, optimizer, progress
        self.count, self.micro, self.first, self.computes = recipe.count, 0, True, 0
        self.batch: Batch = {}
        self.out: Outputs = {}
        self.taps: dict[str, Any] = {}
        self.terms: dict[str, Tensor] = {}
        self.deferred: dict[str, Callable[[], None]] = {}
        self.weigh: Callable[[Tensor], Tensor] | None = None
        self.edit: Callable[[Tensor], Tensor] | None = None
        self.alone = False
        self._params: dict[str, nn.Parameter] | None = None

    @property
    def model(self) -> nn.Module:
        """The user's model, without compile and DDP wrappers."""
        return self.recipe.bare

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.recipe.task

    @property
    def device(self) -> torch.device:
        """Where the model's parameters live."""
        return self.recipe.device

    def log(self, name: str, value: Tensor) -> None:
        """Add ``value``, detached, to the term ``name`` of this update."""
        value = value.detach()
        self.terms[name] = self.terms[name] + value if name in self.terms else value

    def at(self, value: Scalar) -> float:
        """A number, or a schedule's value now."""
        if not callable(value):
            return value
        if self.progress is None:
            raise ValueError(
                f"{value!r} is a schedule and needs to know how far training is: "
                "pass steps=<number of updates> to attach, or progress= to step"
            )
        return value(self.progress)

    def params(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, tied ones once."""
        if self._params is None:
            self._params = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return self._params

    def grads(self) -> dict[str, Tensor]:
        """Gradients computed so far, by parameter name; parameters without one are absent."""
        return {n: p.grad for n, p in self.params().items() if p.grad is not None}

    def rng(
        self, method: Method, *salt: Any, device: torch.device | None = None, shared: bool = False
    ) -> torch.Generator:
        """A generator that depends on nothing but (seed, method, step, microbatch, rank, salt).

        So extra passes repeat the same draw, resuming needs no generator state, and one method never disturbs
        another's noise. ``shared=True`` leaves the rank out: for choices that all ranks must share.
        """
        key = (
            self.recipe.seed,
            self.recipe.name_of(method),
            self.count,
            self.micro,
            0 if shared else rank(),
            *salt,
        )
        return torch.Generator(device or self.device).manual_seed(zlib.crc32(repr(key).encode()))

    def forward(self, model: nn.Module | None = None, *, precise: bool = False, **changed: Any) -> Outputs:
        """An extra pass with some batch entries changed.

        Running statistics stay as they are, taps are off, and dropout repeats the masks of the main pass.
        ``model`` stands in for the user's model (a teacher, say). ``precise`` leaves autocast out, for derivatives that
        half precision would spoil.
        """
        batch = {**self.batch, **changed} if changed else self.batch
        used = model or self.recipe.undistributed
        with (
            frozen_statistics(used),
            self.recipe.untapped(),
            self.recipe.noise(self),
            torch.autocast(self.device.type, enabled=False) if precise else self.recipe.precision(),
        ):
            return self.task.forward(used, batch)

    @contextmanager
    def moved(self, delta: Mapping[str, Tensor]) -> Iterator[None]:
        """Weights moved by ``delta`` for a while, then restored bit for bit."""
        params: list[Tensor] = [self.params()[n] for n in delta]
        kept = [p.detach().clone() for p in params]
        with torch.no_grad():
            torch._foreach_add_(params, tuple(delta.values()))
        del delta  # its memory may go, if the caller kept no hold of it
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(params, kept)

    @contextmanager
    def weighing(self, weigh: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Inside, the objective is ``(weigh(rows) * rows).sum()`` over the per-sample rows (B,), not their mean."""
        self.weigh, kept = weigh, self.weigh
        try:
            yield
        finally:
            self.weigh = kept

    @contextmanager
    def editing(self, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Inside, ``edit(objective)`` is differentiated for each microbatch's objective; the logged terms stay."""
        kept = self.edit
        self.edit = edit if kept is None else lambda objective: kept(edit(objective))
        try:
            yield
        finally:
            self.edit = kept

    def defer(self, method: Method, action: Callable[[], None]) -> None:
        """Run ``action`` once, after all gradients are there and right before the optimizer's step."""
        self.deferred[self.recipe.name_of(method)] = action

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all ranks, differentiable; for terms of ``scope = "batch"``."""
        return gather(tensor)
