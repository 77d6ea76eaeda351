"""Regularised learning of one task after the other without old data, Smith et al. 2022."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...adaptation.lwf import LwF
from ...adaptation.separated_softmax import SeparatedSoftmax
from ...core import Method, Recipe
from ...tasks import Classify
from ...workbench.metrics import accuracy
from .. import measures
from ..arenas import Sample, digits, mlp
from ..claim import Claim
from ..mutation import Mutation, zero

TASKS, EPOCHS, BATCH = 5, 15, 32
SPLITS = (2, 4, 6, 8)


def of_task(x: Tensor, y: Tensor, task: int) -> tuple[Tensor, Tensor]:
    """The rows of a task's two classes."""
    rows = y // 2 == task
    return x[rows], y[rows]


def learn(model: nn.Module, x: Tensor, y: Tensor, seed: int, *methods: Method) -> None:
    """One task, AdamW 1e-3."""
    recipe = Recipe(*methods, seed=seed).attach(model, Classify(classes=10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    order = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x), generator=order), BATCH):
            recipe.step({"x": x[rows], "y": y[rows]}, optimizer)
    recipe.finish()


def stream(seed: int, sample: Sample, keeping: Callable[[int], Method] | None) -> dict[str, float]:
    """Final accuracy over all ten classes, and how much of each task was forgotten by then."""
    model, table = mlp(seed, 64, 256, 256, 10), []
    for task in range(TASKS):
        old = 2 * task
        methods = [keeping(old)] if old and keeping else []
        learn(model, *of_task(sample.x, sample.y, task), seed + task, SeparatedSoftmax(splits=SPLITS), *methods)
        said = measures.predictions(model, sample.x_test)[:, : old + 2]  # among the classes seen so far
        table.append([accuracy(*of_task(said, sample.y_test, t)) for t in range(task + 1)])
    return {"accuracy": accuracy(said, sample.y_test), "forgetting": measures.forgetting(table)}


def run(seed: int) -> dict[str, dict[str, float]]:
    """Five tasks of two digits, each learnt with and without distillation from the model before it."""
    sample = digits(seed, 1100)
    return {"with": stream(seed, sample, lambda old: LwF(old=old)), "without": stream(seed, sample, None)}


CLAIM = Claim(
    paper="rehearsal-free-cl",
    statement="Of classes that come two at a time, without old data, more are told apart in the end if the new data "
    "are also used to hold the old predictions.",
    arena="digits, 1100 scans in five tasks of two classes; MLP 64-256-256-10, AdamW 1e-3, batch 32, 15 epochs "
    "a task, cross-entropy among the task's own classes; test scans of all ten classes at the end",
    quantity="accuracy",
    margin=4.0,  # a third of the 13 seen on other seeds
    run=run,
    mutation=Mutation("the divergence is zero", "wellposed.adaptation.lwf:LwF.penalty", zero),
)
