"""Recipe: an ordered list of methods, and the training step they compose to.

Three laws. Values chain in list order (``batch``, ``outputs``, ``loss``). Terms add and commute (``penalty``).
Wrappers nest, first listed outermost (``gradient``).
"""

from __future__ import annotations

import math
import operator
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import attaching
from .errors import NonFiniteError, RecipeError
from .method import SLOTS, Method
from .modes import evaluating
from .parallel import bare, frozen_statistics, is_stochastic, rank, replayed, sync, world_mean, world_size
from .step import Step
from .task import Batch, Task, batch_size, weighted_mean

NOTHING = nullcontext()


class _Run:
    """What changes at every step; apart from the module, whose attribute assignment is slow."""

    def __init__(self) -> None:
        self.count, self.micro = 0, 0
        self.current: Step | None = None  # the update under way
        self.tapping, self.wrapped, self.warned = True, False, False


class Recipe(nn.Module):
    """Methods composed into one training step; a module with a state dict.

    Args:
        methods: in order; see the three laws above.
        seed: of all noise the methods draw.

    Raises:
        RecipeError: if something listed is not a method, or is listed twice, or the seed is no whole number.
    """

    model: nn.Module
    bare: nn.Module
    undistributed: nn.Module
    task: Task
    device: torch.device
    steps: int | None
    scaler: torch.amp.GradScaler | None
    autocast: torch.dtype | None
    check: bool

    def __init__(self, *methods: Method, seed: int = 0) -> None:
        super().__init__()
        for m in methods:
            if not isinstance(m, Method):
                hint = f"; write {m.__name__}()" if isinstance(m, type) else ""
                raise RecipeError(f"a recipe lists methods, got {m!r}{hint}")
        if len(set(map(id, methods))) < len(methods):
            raise RecipeError("the same method object is listed twice; make two objects")
        self.methods = nn.ModuleList(methods)
        try:
            self.seed, self.attached = int(operator.index(seed)), False
        except TypeError:
            raise RecipeError(f"the seed must be a whole number, got {seed!r}") from None
        self._run = _Run()
        total, seen = Counter(type(m).__name__ for m in methods), Counter[str]()
        self.names: dict[Method, str] = {}
        for m in methods:
            name = type(m).__name__
            seen[name] += 1
            self.names[m] = name if total[name] == 1 else f"{name}.{seen[name]}"
        self._on: dict[str, list[Method]] = {s: [m for m in methods if s in m.slots()] for s in SLOTS}
        self._hooks: list[Any] = []

    # ---- attaching
    def attach(
        self,
        model: nn.Module,
        task: Task,
        *,
        steps: int | None = None,
        example: Batch | None = None,
        scaler: torch.amp.GradScaler | None = None,
        autocast: torch.dtype | None = None,
        check: bool = True,
    ) -> Recipe:
        """Bind to a model and a task: check, set up, and register taps. Do this before compile and DDP.

        Args:
            model: any module.
            task: what is learned.
            steps: number of updates to come, for schedules; or give ``progress`` to every step.
            example: a batch; its keys are then checked here and not at the first step.
            scaler: a ``GradScaler``; scaling and unscaling happen inside each gradient computation, so that methods
                see true gradients, and an overflowing update is skipped.
            autocast: run forward passes under ``torch.autocast`` in this dtype.
            check: raise NonFiniteError when a term is NaN or infinite (on a GPU this waits for the device each step).

        Returns:
            the recipe itself.

        Raises:
            RecipeError: for whatever cannot work; nothing is then left behind on the model.
        """
        if self.attached:
            raise RecipeError("the recipe is attached already; call detach() first")
        if not isinstance(model, nn.Module):
            raise RecipeError(f"the model must be a torch.nn.Module, got {model!r}")
        if steps is not None and steps < 1:
            raise RecipeError(f"steps is the number of updates to come, at least 1; got {steps}")
        core = bare(model)
        first = next(core.parameters(), None)
        self.__dict__.update(  # not registered: the model's weights are not the recipe's state
            model=model, task=task, bare=core, steps=steps, scaler=scaler, autocast=autocast, check=check,
            device=first.device if first is not None else torch.device("cpu"),
            undistributed=model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model,
        )  # fmt: skip
        self._hooks = attaching.attach(self, core, task, example)
        several = any(m.passes() > 1 for m in self.listed)  # then even noise that shows in no module must repeat
        held = [m for m in vars(task).values() if isinstance(m, nn.Module)]  # the other player, a reference
        self._stochastic = several or any(map(is_stochastic, (core, self, *held)))
        self._simple = not self._stochastic and not isinstance(model, nn.parallel.DistributedDataParallel)
        self.attached = True
        return self

    def through(self, model: nn.Module) -> Recipe:
        """Run the main pass through ``model``, a DDP or compiled wrapper of the attached model."""
        self._require_attached()
        if bare(model) is not self.bare:
            raise RecipeError("through() takes a wrapper of the attached model; this is another model")
        self._simple = self._simple and not isinstance(model, nn.parallel.DistributedDataParallel)
        self.__dict__.update(
            model=model,
            undistributed=model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model,
        )
        return self

    def detach(self) -> nn.Module:
        """Take everything off the model again; it computes what it computed. Returns the model."""
        self._require_attached()
        for hook in self._hooks:
            hook.remove()
        for m in reversed(self.listed):
            m.teardown(self.bare)
        self.attached, self._hooks, self._run = False, [], _Run()
        return self.bare

    def finish(self) -> nn.Module:
        """Give the model the weights to ship (an average, the best epoch), then detach. Returns the model."""
        self._require_attached()
        self.bare.load_state_dict(self._shipped(), strict=False)
        return self.detach()

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Inside, the model is in eval mode and holds the weights that ``finish`` would ship."""
        self._require_attached()
        shipped, state = self._shipped(), self.bare.state_dict()
        kept = {k: state[k].detach().clone() for k in shipped}
        self.bare.load_state_dict(shipped, strict=False)
        try:
            with evaluating(self.bare), self.untapped():
                yield self.bare
        finally:
            self.bare.load_state_dict(kept, strict=False)

    def _shipped(self) -> dict[str, Tensor]:
        shipped: dict[str, Tensor] = {}
        for m in self.listed:
            shipped.update(m.evaluation_state() or {})
        return shipped

    # ---- tier 1: our step
    def step(
        self,
        window: Batch | Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        progress: float | None = None,
    ) -> dict[str, Tensor]:
        """One update.

        Args:
            window: a batch, or the list of microbatches of one update (they equal the one large batch).
            optimizer: any ``torch.optim`` optimizer over the model's parameters.
            progress: share of training done; default from ``steps`` of ``attach``.

        Returns:
            every term of the objective apart, detached: ``"task"``, one per penalty, and ``"total"``.

        Raises:
            NonFiniteError: if a term is NaN or infinite.
            TypeError: if a batch is no mapping.
            ValueError: if there is no batch, or no sample in it.
        """
        self._require_attached()
        window = [window] if isinstance(window, Mapping) else attaching.window_of(window)
        step = self._begin(optimizer, progress)
        compute: Callable[[], None] = partial(self._accumulate, window, step)
        for m in reversed(self._on["gradient"]):
            compute = partial(m.gradient, compute, step)
        try:
            compute()
            if self._advance(optimizer, step):
                for m in self._on["update"]:
                    m.update(step)
        finally:
            self._run.current = None
        self._run.count += 1
        return step.terms

    def _begin(self, optimizer: torch.optim.Optimizer | None, progress: float | None) -> Step:
        if progress is None and self.steps:
            progress = min(1.0, self.count / self.steps)
        step = self._run.current = Step(self, optimizer, progress)
        return step

    def _accumulate(self, window: Sequence[Batch], step: Step) -> None:
        """The gradient of the objective over all microbatches, into ``.grad``."""
        assert step.optimizer is not None
        for group in step.optimizer.param_groups:  # what zero_grad does, without its profiling
            for p in group["params"]:
                p.grad = None
        step.first = step.computes == 0
        step.computes += 1
        last, ranks = len(window) - 1, world_size()
        step.alone = not last and ranks == 1
        if step.alone:
            shares = [(1.0, 1.0)]
        else:
            sizes = [self._size(raw) for raw in window]
            local = sum(sizes) or 1.0  # a window of nothing but padding
            total = world_mean(local, self.device)
            shares = [(size / total, size / local) for size in sizes]
        if last:
            self._warn_inexact()
        for step.micro, raw in enumerate(window):
            if self._simple and step.first:
                self._backward(raw, step, *shares[step.micro])
                continue
            with (
                sync(self.model, step.micro == last),
                nullcontext() if step.first else frozen_statistics(self.bare),
                self.noise(step),
            ):
                self._backward(raw, step, *shares[step.micro])
        if self.scaler:
            self._rescale(step.optimizer, 1 / self.scaler.get_scale())

    def _warn_inexact(self) -> None:
        """Say once that terms of coupled samples do not see across microbatches."""
        if not self._run.warned:
            self._run.warned = True
            for m in self._on["penalty"]:
                if m.scope == "batch":
                    attaching.warn_inexact(self.names[m])

    def _backward(self, raw: Batch, step: Step, share: float, local: float) -> None:
        objective = self._objective(raw, step, self.model, share, local, once=step.micro == 0)
        backward = getattr(step.optimizer, "backward", None)  # an optimizer that needs more than the gradient
        if backward is not None and self.scaler:
            raise RecipeError(
                f"{type(step.optimizer).__name__} differentiates the loss itself, which a GradScaler would scale: "
                "attach without one (bfloat16 needs none)"
            )
        (backward or torch.autograd.backward)(self.scaler.scale(objective) if self.scaler else objective)

    def _size(self, raw: Batch) -> float:
        weight = self.task.weight(raw)
        return float(batch_size(raw)) if weight is None else float(weight.sum())

    def _objective(
        self, raw: Batch, step: Step, model: nn.Module, share: float, local: float, once: bool = True
    ) -> Tensor:
        """The objective of one microbatch.

        It holds ``share`` of the update's samples (``local``: of this rank's); ``once``: and the terms of ``"params"``.
        """
        on, task, batch = self._on, self.task, raw
        step.taps.clear()
        for m in on["batch"]:
            batch = m.batch(batch, step)
        step.batch = batch
        with self.precision():
            out = task.forward(model, batch)
            for m in on["outputs"]:
                out = m.outputs(out, step)
            step.out = out
            weight = task.weight(batch) if on["penalty"] or on["loss"] or step.weigh else None
            if on["loss"] or step.weigh:
                rows = task.loss(out, batch)
                for m in on["loss"]:
                    rows = m.loss(rows, step)
                mean = weighted_mean(rows, weight)
            else:  # nobody asks for the single samples: the task may use a fused mean
                rows = mean = task.mean_loss(out, batch)
            terms = {"task": _times(mean, share)}
            apart = []  # the terms that are not in the rows
            for m in on["penalty"]:
                strength = step.at(m.strength)
                if strength == 0 or (m.scope == "params" and not once):
                    continue
                term = m.penalty(step)
                if term is None:
                    continue
                term = strength * term
                in_rows = step.weigh is not None and m.scope == "sample" and term.ndim > 0
                if in_rows:
                    rows = rows + term
                term = weighted_mean(term, weight if m.scope == "sample" else None)
                terms[self.names[m]] = term = _times(term, {"sample": share, "batch": local, "params": 1.0}[m.scope])
                if not in_rows:
                    apart.append(term)
            objective = _times((step.weigh(rows) * rows).sum(), share) if step.weigh else terms["task"]
            for term in apart:
                objective = objective + term
        if self.check and not math.isfinite(objective.item()):
            self._explain_failure(terms, objective, step)
        if step.first:
            for name, term in terms.items():
                step.log(name, term)
            step.log("total", objective)
        return step.edit(objective) if step.edit else objective

    def _explain_failure(self, terms: dict[str, Tensor], objective: Tensor, step: Step) -> None:
        """Raise NonFiniteError, unless an overflow that the scaler will find has just moved the weights."""
        if self.scaler and not step.first and not all(p.isfinite().all() for p in step.params().values()):
            return
        if any(isinstance(v, Tensor) and v.ndim and not len(v) for v in step.batch.values()):
            raise ValueError("the batch holds no samples; leave empty batches out")
        bad = [(n, t.item()) for n, t in terms.items() if not math.isfinite(t.item())]
        raise NonFiniteError(self.count, *(bad or [("total", objective.item())])[0])

    def _rescale(self, optimizer: torch.optim.Optimizer, factor: float) -> None:
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, factor)

    def _advance(self, optimizer: torch.optim.Optimizer, step: Step) -> bool:
        """The optimizer's step; False where a gradient scaler found an overflow and skipped it."""
        if self.scaler is None:
            for action in step.deferred.values():
                action()
            optimizer.step()
            return True
        scale = self.scaler.get_scale()
        self._rescale(optimizer, scale)  # the scaler insists on unscaling by itself; powers of two lose nothing
        hooks = [
            optimizer.register_step_pre_hook(lambda *_, act=action: act())
            for action in step.deferred.values()  # a skipped step skips them, too
        ]
        try:
            self.scaler.step(optimizer)
        finally:
            for hook in hooks:
                hook.remove()
        self.scaler.update()
        return self.scaler.get_scale() >= scale

    # ---- tiers 2 and 3: somebody else's step
    def objective(self, model: nn.Module, batch: Batch, progress: float | None = None) -> Tensor:
        """The whole objective of one batch as a scalar, for a loop that calls ``backward`` itself.

        All slots act but ``gradient`` and ``update``: for those step with ``recipe.optimizer(opt)``. Without it, call
        ``recipe.update()`` after every optimizer step. ``model`` may be a wrapper of the attached model.

        Raises:
            RecipeError: if a method acts in ``gradient`` and no ``recipe.optimizer`` was made.
        """
        self._require_attached()
        if self._on["gradient"] and not self._run.wrapped:
            names = ", ".join(self.names[m] for m in self._on["gradient"])
            raise RecipeError(
                f"{names} acts around the gradient, which objective() cannot: step with recipe.optimizer(optimizer) "
                "and a closure, or use recipe.step"
            )
        attaching.window_of([batch])
        step = self._run.current or self._begin(None, progress)
        if progress is not None:
            step.progress = progress
        step.micro, self._run.micro = self._run.micro, self._run.micro + 1
        if step.micro:
            self._warn_inexact()
        with nullcontext() if step.first else frozen_statistics(self.bare), self.noise(step):
            return self._objective(batch, step, model, 1.0, 1.0)

    def update(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """End an update made of ``objective`` calls: the ``update`` slots act, the count rises. Returns the terms."""
        self._require_attached()
        step = self._run.current or self._begin(optimizer, None)
        for m in self._on["update"]:
            m.update(step)
        self._run.count += 1
        self._run.micro, self._run.current = 0, None
        return step.terms

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """An optimizer whose ``step(closure)`` runs ``gradient`` and ``update`` slots around the closure.

        The closure computes ``recipe.objective(model, batch)``, calls ``backward`` and returns the loss.
        """
        from .wrapper import RecipeOptimizer

        self._require_attached()
        if self.scaler:
            raise RecipeError(
                "a GradScaler given to attach() scales inside recipe.step, not in somebody else's closure"
            )
        self._run.wrapped = True
        return RecipeOptimizer(self, optimizer)

    # ---- helpers that Step uses
    def name_of(self, method: Method) -> str:
        """The method's name in this recipe: its class, numbered among duplicates."""
        return self.names[method]

    @contextmanager
    def untapped(self) -> Iterator[None]:
        """Inside, submodule outputs are not recorded."""
        kept, self._run.tapping = self._run.tapping, False
        try:
            yield
        finally:
            self._run.tapping = kept

    def noise(self, step: Step) -> AbstractContextManager[None]:
        """Dropout's draws made a pure function of (seed, step, microbatch, rank); nothing for models without."""
        if not self._stochastic:
            return NOTHING
        key = (self.seed, "model", step.count, step.micro, rank())
        return replayed(zlib.crc32(repr(key).encode()), self.device)

    def precision(self) -> AbstractContextManager[Any]:
        """The autocast context asked for at ``attach``."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else NOTHING

    @property
    def count(self) -> int:
        """Updates finished."""
        return self._run.count

    @property
    def listed(self) -> list[Method]:
        """The methods in order."""
        return list(self.names)

    def _require_attached(self) -> None:
        if not self.attached:
            raise RecipeError("the recipe is not attached; call recipe.attach(model, task) first")

    # ---- a value: printed, saved, read back
    def explain(self) -> str:
        """The composed step in words, slot by slot."""
        from .explain import explain

        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a version; raises ValueError for a strength that is no number or known schedule."""
        from .files import to_dict

        return to_dict(self)

    def to_json(self) -> str:
        """``to_dict`` as JSON; read back by ``wellposed.load_recipe``."""
        from .files import to_json

        return to_json(self)

    def to_toml(self) -> str:
        """``to_dict`` as TOML; read back by ``wellposed.load_recipe``."""
        from .files import to_toml

        return to_toml(self)

    def get_extra_state(self) -> Tensor:
        """The count of updates: with the methods' buffers all that resuming needs. A tensor, for any file format."""
        return torch.tensor(self.count)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from ``state``."""
        self._run.count = int(state)

    def __repr__(self) -> str:
        inside = [repr(m) for m in self.methods] + ([f"seed={self.seed}"] if self.seed else [])
        return f"Recipe({', '.join(inside)})"


def _times(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else tensor * factor
