"""One training run of a comparison: a pure function from plain data to plain data."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..core import NonFiniteError, Recipe, Task
from ..tasks import Classify, NextToken, Regress
from ..tasks.classify import logits_of
from . import metrics, models, rows
from .data import Data, Split, load
from .facts import Facts, feature_layer
from .lean import LeanAdamW

NOISE_SD = 0.3
"""Standard deviation of the Gaussian noise on test inputs behind ``noise_accuracy``, in units of the input."""


@dataclass(frozen=True)
class Setting:
    """Everything the runs of one comparison share.

    Attributes:
        data, target, task: as ``wellposed.workbench.data.load`` takes them.
        model: as ``wellposed.workbench.models.build`` takes it.
        train_size, label_noise, corrupt: as ``Data.split`` takes them.
        epochs, batch_size, lr: of training with AdamW, without weight decay (decay is a technique).
        metric: what ranks the rows.
    """

    data: str = "digits"
    target: str | None = None
    task: str | None = None
    model: str | None = None
    train_size: int | None = None
    label_noise: float = 0.0
    corrupt: str | None = None
    epochs: int = 60
    batch_size: int = 32
    lr: float = 2e-3
    metric: str = "accuracy"

    def load(self) -> Data:
        """The data, once per process."""
        return _load(self.data, self.target, self.task)

    def split(self, seed: int) -> Split:
        """The parts of one seed; the last few are kept."""
        return _split(self, seed)

    def facts(self) -> Facts:
        """What techniques may be told of data and model; the same for every seed."""
        return _facts(self)


@lru_cache(maxsize=2)
def _facts(setting: Setting) -> Facts:
    data, split = setting.load(), setting.split(0)
    rows = len(split.x_train)
    features = feature_layer(models.build(setting.model, data, split, 0), split.x_train[:2]) or (None, None)
    return Facts(rows, task_of(data).classes, math.prod(split.x_train.shape[1:]), *features)


@lru_cache(maxsize=2)
def _load(data: str, target: str | None, task: str | None) -> Data:
    return load(data, target, task=task)


@lru_cache(maxsize=8)
def _split(setting: Setting, seed: int) -> Split:
    return setting.load().split(
        seed, train_size=setting.train_size, label_noise=setting.label_noise, corrupt=setting.corrupt
    )


def task_of(data: Data) -> Task:
    """The task that fits the data."""
    if data.task == "regression":
        return Regress()
    if data.task == "language":
        return NextToken()
    return Classify(classes=len(data.classes or ()))


def prepare(
    setting: Setting, row: rows.Row, seed: int, chosen: dict[str, Any]
) -> tuple[nn.Module, Recipe, torch.optim.Optimizer, Split]:
    """Model, recipe and optimizer of one run; a pure function of its arguments."""
    data, split = setting.load(), setting.split(seed)
    model = models.build(setting.model, data, split, seed)
    task = task_of(data)
    recipe = rows.recipe_of(row, setting.facts(), seed, **chosen)
    steps = setting.epochs * batches_per_epoch(len(split.x_train), setting.batch_size)
    recipe.attach(model, task, steps=steps)
    optimizer = LeanAdamW(model.parameters(), lr=setting.lr)
    return model, recipe, optimizer, split


def batches_per_epoch(n: int, batch_size: int) -> int:
    """Full batches of an epoch; the rest of the rows comes round in the next order."""
    return max(1, n // batch_size)


def run(setting: Setting, row: rows.Row, seed: int, chosen: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train one row on one seed to the end, and measure it.

    The seed fixes split, initialisation, order of batches and all noise, for every row alike. Validation data choose
    the epoch; test data are looked at once, for the last and for the selected weights.

    Returns:
        ``last`` and ``selected`` (metric dicts on test data; ``selected`` with its ``epoch``), ``validation`` (the
        best validation value of the ranking metric), ``last_validation`` and its standard error ``validation_error``,
        ``curves``, ``seconds`` per training step and ``total_seconds``.

    Raises:
        NonFiniteError: if training diverges.
    """
    begin = time.perf_counter()
    model, recipe, optimizer, split = prepare(setting, row, seed, chosen or {})
    data = setting.load()
    sign = 1.0 if metrics.METRICS[data.task][setting.metric] == "max" else -1.0
    n, size = len(split.x_train), min(setting.batch_size, len(split.x_train))
    order = torch.Generator().manual_seed(seed)
    curves: dict[str, list[float]] = {"epoch": [], "train": [], "validation": []}
    best, best_epoch, kept = -math.inf, 0, {k: v.clone() for k, v in model.state_dict().items()}
    training = 0.0
    for epoch in range(1, setting.epochs + 1):
        shuffled = torch.randperm(n, generator=order)
        whole = batches_per_epoch(n, size) * size
        parts = [torch.split(t[shuffled[:whole]], size) for t in (split.x_train, split.y_train, torch.arange(n))]
        start = time.perf_counter()
        for x, y, index in zip(*parts, strict=True):
            recipe.step({"x": x, "y": y, "index": index}, optimizer)
        training += time.perf_counter() - start
        with recipe.evaluating(), torch.no_grad():
            train = metrics.one(setting.metric, predict(model, split.x_train), split.y_train, split.y_scale)
            validation = metrics.one(setting.metric, predict(model, split.x_val), split.y_val, split.y_scale)
            if not math.isfinite(validation):
                raise NonFiniteError(recipe.count, "validation", validation)
            curves["epoch"].append(epoch)
            curves["train"].append(train)
            curves["validation"].append(validation)
            if sign * validation > best:
                best, best_epoch = sign * validation, epoch
                kept = {k: v.clone() for k, v in model.state_dict().items()}
    with recipe.evaluating():
        error = metrics.standard_error(setting.metric, predict(model, split.x_val), split.y_val, split.y_scale)
        last = final(model, data, split, seed)
        recipe.bare.load_state_dict(kept)
        selected = final(model, data, split, seed)
    steps = setting.epochs * batches_per_epoch(n, size)
    return {
        "last": last,
        "selected": {**selected, "epoch": best_epoch},
        "validation": sign * best,
        "last_validation": curves["validation"][-1],
        "validation_error": error if math.isfinite(error) else None,
        "curves": curves,
        "seconds": training / steps,
        "total_seconds": time.perf_counter() - begin,
    }


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, chunk: int = 4096) -> Tensor:
    """Outputs (logits or values) for all of ``x``."""
    return torch.cat([logits_of(model(part)) for part in torch.split(x, chunk)])


def measure(model: nn.Module, data: Data, split: Split, x: Tensor, y: Tensor) -> dict[str, float]:
    """The metrics of this kind of task."""
    out = predict(model, x)
    if data.task == "regression":
        return metrics.regression(out.view(y.shape), y, split.y_scale)
    return metrics.language(out, y) if data.task == "language" else metrics.classification(out, y)


@torch.no_grad()
def final(model: nn.Module, data: Data, split: Split, seed: int) -> dict[str, float]:
    """All test metrics: those of ``measure``, robustness to input noise, and wrong labels fitted."""
    found = measure(model, data, split, split.x_test, split.y_test)
    if not split.x_test.is_floating_point():
        return found
    noise = torch.randn(split.x_test.shape, generator=torch.Generator().manual_seed(10_000 + seed))
    shaken = measure(model, data, split, split.x_test + NOISE_SD * noise, split.y_test)
    if data.task == "regression":
        return {**found, "noise_rmse": shaken["rmse"]}
    found["noise_accuracy"] = shaken["accuracy"]
    wrong = split.y_train != split.y_train_clean
    if wrong.any():
        found["fitted_wrong"] = metrics.accuracy(predict(model, split.x_train[wrong]), split.y_train[wrong])
    return found
