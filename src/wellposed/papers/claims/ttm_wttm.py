"""Transformed teacher matching, Zheng, Yang 2024."""

import torch
from torch import nn

from ...augmentation.dropout import Dropout
from ...core import Method
from ...objectives.distillation import TTM, KnowledgeDistillation, power_entropy
from ..arenas import Arena, Sample, digits, quality
from ..claim import Claim
from ..mutation import Mutation

TEACHER = Arena("", lambda seed: digits(seed, 200), (256, 256), epochs=60, lr=1e-3)
STUDENT = Arena(
    "digits, 200 training scans; teacher MLP 64-256-256-10 with dropout 0.5, student MLP 64-16-10, AdamW 3e-3 (teacher "
    "1e-3), batch 32, 60 epochs",
    lambda seed: digits(seed, 200), (16,), epochs=60, lr=3e-3,
)  # fmt: skip


def measure(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Quality, and mean Renyi entropy of order 1/4 on test data."""
    with torch.no_grad():
        entropy = float(power_entropy(model(sample.x_test), 0.25).mean())
    return quality(model, sample) | {"Renyi entropy": entropy}


def run(seed: int) -> dict[str, dict[str, float]]:
    """A teacher, and two students of it."""
    sample = STUDENT.draw(seed)
    teacher = TEACHER.train(seed, sample, Dropout(p=0.5))

    def student(method: Method) -> dict[str, float]:
        return measure(STUDENT.train(seed, sample, method), sample)

    return {
        "with": student(TTM(teacher=teacher, temperature=4.0, strength=4.0)),
        "without": student(KnowledgeDistillation(teacher=teacher, temperature=4.0, strength=1.0)),
    }


CLAIM = Claim(
    paper="ttm-wttm",
    statement="A student that matches its teacher's softened predictions with its own plain ones ends with a higher "
    "test accuracy than one that softens both.",
    arena=STUDENT.words + "; temperature 4; strength 4, classical form 1 times the squared temperature",
    quantity="accuracy",
    margin=0.5,  # a quarter of the effect on other seeds
    run=run,
    mutation=Mutation(
        "the student has the temperature, too",
        "wellposed.objectives.distillation:ttm_loss",
        lambda original: (
            lambda student, teacher, temperature, weighted: original(
                student / temperature, teacher, temperature, weighted
            )
        ),
    ),
)
