"""Tiny methods, one idea each, and a small problem: what the tests of the core compose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import wellposed as wp
from wellposed.core.norms import global_norm
from wellposed.core.schedules import Scalar

torch.set_num_threads(1)
ROWS, CLASSES = 12, 3


class TimesX(wp.Method):
    null = None
    by: float = wp.knob(2.0)

    def batch(self, batch: Mapping[str, Any], step: wp.Step) -> Mapping[str, Any]:
        return {**batch, "x": batch["x"] * self.by}


class PlusX(wp.Method):
    null = None
    by: float = wp.knob(1.0)

    def batch(self, batch: Mapping[str, Any], step: wp.Step) -> Mapping[str, Any]:
        return {**batch, "x": batch["x"] + self.by}


class TimesLogits(wp.Method):
    null = None
    by: float = wp.knob(2.0)

    def outputs(self, out: dict[str, Any], step: wp.Step) -> dict[str, Any]:
        return {**out, "logits": out["logits"] * self.by}


class PlusLogits(wp.Method):
    null = None
    by: float = wp.knob(1.0)

    def outputs(self, out: dict[str, Any], step: wp.Step) -> dict[str, Any]:
        ramp = torch.arange(out["logits"].shape[-1], dtype=out["logits"].dtype)
        return {**out, "logits": out["logits"] + self.by * ramp}


class TimesLoss(wp.Method):
    null = None
    by: float = wp.knob(2.0)

    def loss(self, loss: Tensor, step: wp.Step) -> Tensor:
        return loss * self.by


class PlusLoss(wp.Method):
    null = None
    by: float = wp.knob(1.0)

    def loss(self, loss: Tensor, step: wp.Step) -> Tensor:
        return loss + self.by


class OtherLoss(wp.Method):
    """Discards the loss it is given."""

    null = None
    replaces = True

    def loss(self, loss: Tensor, step: wp.Step) -> Tensor:
        return step.out["logits"].square().mean(-1)


class YetAnotherLoss(wp.Method):
    null = None
    replaces = True

    def loss(self, loss: Tensor, step: wp.Step) -> Tensor:
        return step.out["logits"].abs().mean(-1)


class SquaredWeights(wp.Method):
    """Once per update: a scope="params" term."""

    scope = "params"
    strength: Scalar = wp.knob(0.1)

    def penalty(self, step: wp.Step) -> Tensor:
        return torch.stack([p.square().sum() for p in step.params().values() if p.ndim > 1]).sum()


class Activity(wp.Method):
    """Mean size of a tapped layer's output, per sample."""

    layers: Sequence[str] = ("0",)
    strength: Scalar = wp.knob(0.1)

    @property
    def taps(self) -> Sequence[str]:
        return self.layers

    def penalty(self, step: wp.Step) -> Tensor:
        return sum(step.taps[name].abs().flatten(1).mean(1) for name in self.layers)


class Spread(wp.Method):
    """Couples the samples: the variance of the logits over the batch, gathered over ranks."""

    scope = "batch"
    strength: Scalar = wp.knob(0.1)

    def penalty(self, step: wp.Step) -> Tensor:
        return step.gather(step.out["logits"]).var(0).sum()


class Consistency(wp.Method):
    """An extra pass on jittered inputs."""

    stops = True
    std: float = wp.knob(0.1)
    strength: Scalar = wp.knob(0.5)

    def penalty(self, step: wp.Step) -> Tensor:
        x = step.batch["x"]
        noise = torch.empty_like(x).normal_(generator=step.rng(self))
        again = step.forward(x=x + self.std * noise)["logits"]
        return (again - step.out["logits"].detach()).square().mean(-1)

    def passes(self) -> float:
        return 2.0


class ClipNorm(wp.Method):
    """Scale the gradient to at most this norm."""

    null = None
    norm: float = wp.knob(0.1)

    def gradient(self, compute: Callable[[], None], step: wp.Step) -> None:
        compute()
        grads = list(step.grads().values())
        torch._foreach_mul_(grads, (self.norm / (global_norm(grads) + 1e-12)).clamp(max=1.0))


class Average(wp.Method):
    """Exponential average of the weights, shipped at the end."""

    null = None
    decay: float = wp.knob(0.5)

    def setup(self, model: nn.Module, task: wp.Task) -> None:
        for name, p in model.named_parameters():
            self.register_buffer(name.replace(".", "/"), p.detach().clone())

    def update(self, step: wp.Step) -> None:
        with torch.no_grad():
            for name, p in step.model.named_parameters():
                self.get_buffer(name.replace(".", "/")).lerp_(p, 1 - self.decay)

    def evaluation_state(self) -> Mapping[str, Tensor]:
        return {name.replace("/", "."): b for name, b in self.named_buffers()}


class Halve(nn.Module):
    """Half of what is stored; twice as much is stored, so that the weight keeps its value."""

    def forward(self, stored: Tensor) -> Tensor:
        return stored / 2

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * 2


def halve(model: nn.Module, name: str) -> None:
    parametrize.register_parametrization(model.get_submodule(name), "weight", Halve())


def restore(model: nn.Module, name: str) -> None:
    layer = model.get_submodule(name)
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight")
        layer._parameters["bias"] = layer._parameters.pop("bias")  # the weight comes first again


class HalfWeight(wp.Method):
    """Reparametrises the layer it is given."""

    null = None
    layer: str = "0"

    def setup(self, model: nn.Module, task: wp.Task) -> None:
        halve(model, self.layer)

    def teardown(self, model: nn.Module) -> None:
        restore(model, self.layer)


class AlsoHalfWeight(wp.Method):
    null = None
    layer: str = "0"

    def setup(self, model: nn.Module, task: wp.Task) -> None:
        halve(model, self.layer)

    def teardown(self, model: nn.Module) -> None:
        restore(model, self.layer)


class NeedsGroup(wp.Method):
    reads = ("group",)

    def penalty(self, step: wp.Step) -> Tensor:
        return step.batch["group"].float()


class NeedsTokens(wp.Method):
    targets = frozenset({"token"})

    def penalty(self, step: wp.Step) -> Tensor:
        return step.out["logits"].sum()


class BadFrom(wp.Method):
    """A penalty of ``value`` from update ``start`` on; ``extra`` only in the passes after the first."""

    null = None
    value: float = float("nan")
    start: int = 0
    extra: bool = False
    strength: Scalar = wp.knob(1.0)

    def penalty(self, step: wp.Step) -> Tensor:
        bad = step.count >= self.start and not (self.extra and step.first)
        return step.out["logits"].sum(-1) * (self.value if bad else 0.0)


class Watch(wp.Method):
    """Keeps what it sees; adds nothing."""

    null = None

    def __post_init__(self) -> None:
        self.seen: list[Any] = []

    def outputs(self, out: dict[str, Any], step: wp.Step) -> dict[str, Any]:
        self.seen.append((step.count, step.micro, step.first, out["logits"].detach().clone()))
        return out


def net(*, dropout: float = 0.0, norm: bool = False, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A small classifier with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(16, CLASSES),
        ).to(dtype)  # fmt: skip


def data(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)
    x = torch.randn(rows, 6, generator=g, dtype=torch.float64).to(dtype)
    return {"x": x, "y": torch.arange(rows) % CLASSES, "index": torch.arange(rows)}


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)


def train(
    *methods: wp.Method, steps: int = 3, model: nn.Module | None = None, batch: Any = None, **attach: Any
) -> tuple[nn.Module, wp.Recipe]:
    """A few updates; the model and its recipe, still attached."""
    model = net() if model is None else model
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(CLASSES), **attach)
    optimizer = sgd(model)
    for _ in range(steps):
        recipe.step(data() if batch is None else batch, optimizer)
    return model, recipe


def parts_of(batch: Mapping[str, Tensor], *sizes: int) -> list[dict[str, Tensor]]:
    """Microbatches of the given sizes."""
    columns = {k: v.split(sizes) for k, v in batch.items()}
    return [{k: c[i] for k, c in columns.items()} for i in range(len(sizes))]
