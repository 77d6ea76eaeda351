"""Distillation: values, the Renyi identity, weights, and the teacher's life inside a recipe."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, problem, rows
from torch import nn

import wellposed as wp
from wellposed.objectives.distillation import TTM, KnowledgeDistillation, power_entropy, softened_loss, ttm_loss
from wellposed.parts.spectra import renyi_entropy


def powers(logits: list[float], gamma: float) -> list[float]:
    total = sum(math.exp(f) for f in logits)
    return [(math.exp(f) / total) ** gamma for f in logits]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_values_by_explicit_loops(temperature: float) -> None:
    student, _, _ = rows(seed=0)
    teacher, _, _ = rows(seed=1)
    found = ttm_loss(student, teacher, temperature), ttm_loss(student, teacher, temperature, weighted=True)
    classic = softened_loss(student, teacher, temperature)
    for i in range(7):
        raised = powers(teacher[i].tolist(), 1 / temperature)
        p, q = [r / sum(raised) for r in raised], powers(student[i].tolist(), 1.0)
        expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert found[0][i].item() == pytest.approx(expected, rel=1e-11)
        assert found[1][i].item() == pytest.approx(sum(raised) * expected, rel=1e-11)
        soft = powers(student[i].tolist(), 1 / temperature)
        expected = sum(a * math.log(a * sum(soft) / b) for a, b in zip(p, soft, strict=True))
        assert classic[i].item() == pytest.approx(temperature**2 * expected, rel=1e-11)


@pytest.mark.parametrize("temperature", [1.5, 4.0, 8.0])
def test_matching_is_distillation_plus_the_students_renyi_entropy(temperature: float) -> None:
    """CE(p_T, q) = T CE(p_T, q_T) - (T - 1) H_{1/T}(q)."""
    student, _, _ = rows(seed=0)
    teacher, _, _ = rows(seed=1)
    p = F.softmax(teacher / temperature, -1)
    shannon = -(p * p.log()).sum(-1)
    left = ttm_loss(student, teacher, temperature) + shannon
    softened = softened_loss(student, teacher, temperature) / temperature**2 + shannon
    right = temperature * softened - (temperature - 1) * power_entropy(student, 1 / temperature)
    assert torch.allclose(left, right, rtol=0, atol=1e-13)
    mine, spectrum = power_entropy(student, 1 / temperature), F.softmax(student.detach(), -1)
    assert mine.tolist() == pytest.approx([float(renyi_entropy(row, 1 / temperature)) for row in spectrum], abs=1e-12)


def test_gradients_and_weights() -> None:
    student, _, _ = rows(seed=0)
    teacher, _, _ = rows(seed=1)
    for weighted in (False, True):
        assert torch.autograd.gradcheck(lambda f, w=weighted: ttm_loss(f, teacher.detach(), 4.0, w), student)
    assert torch.autograd.gradcheck(lambda f: softened_loss(f, teacher.detach(), 4.0), student)
    weight = ttm_loss(student, teacher, 4.0, weighted=True) / ttm_loss(student, teacher, 4.0)
    assert (weight >= 1).all()
    assert (weight <= 4 ** (1 - 1 / 4)).all()
    uniform = torch.zeros(1, 4)
    hesitating = ttm_loss(torch.ones(1, 4).cumsum(1), uniform, 4.0, weighted=True)
    assert torch.allclose(hesitating, 4 ** (3 / 4) * ttm_loss(torch.ones(1, 4).cumsum(1), uniform, 4.0))


METHODS = [TTM, KnowledgeDistillation]


@pytest.mark.parametrize("method", METHODS)
def test_teacher_is_a_frozen_copy_in_eval_mode(method: type[TTM] | type[KnowledgeDistillation]) -> None:
    model, task, batch = problem("conv")
    teacher, _, _ = problem("conv")
    assert isinstance(teacher, nn.Sequential)
    nn.init.normal_(teacher[-1].weight)  # type: ignore[arg-type]
    taught_by = method(teacher=teacher, strength=2.0)
    recipe = wp.Recipe(taught_by).attach(model, task)
    nn.init.zeros_(teacher[1].weight)  # type: ignore[arg-type]
    assert teacher.training
    kept = taught_by.teacher
    assert kept is not None
    before = {k: v.clone() for k, v in kept.state_dict().items()}
    taught = kept.eval()(batch["x"])
    student = model(batch["x"])
    recipe.train()
    terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1))
    value = ttm_loss if method is TTM else softened_loss
    assert terms[method.__name__].item() == pytest.approx(2 * value(student, taught).mean().item(), rel=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in kept.state_dict().items())
    assert all(p.grad is None for p in kept.parameters())


def test_without_a_teacher_the_model_as_it_was_attached_teaches() -> None:
    model, task, batch = problem("conv")
    at_start = model.eval()(batch["x"]).detach()
    method = KnowledgeDistillation(strength=100.0)
    recipe = wp.Recipe(method).attach(model, task)
    flipped = {**batch, "y": (batch["y"] + 1) % 3}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for _ in range(5):
        recipe.step(flipped, optimizer)
    assert torch.equal(method.tutor(batch["x"]), at_start)
    recipe.detach()
    assert not hasattr(method, "tutor")


@pytest.mark.parametrize("kind", ["conv", "transformer", "tokens"])
@pytest.mark.parametrize("method", METHODS)
def test_trains(kind: str, method: type[TTM] | type[KnowledgeDistillation]) -> None:
    teacher, _, _ = problem(kind)
    losses = fitted(method(teacher=teacher, strength=0.1), kind)
    assert losses[-1] < losses[0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        TTM(temperature=0.0)
    with pytest.raises(ValueError, match="order above 0 other than 1"):
        power_entropy(torch.zeros(2), 1.0)
    with pytest.raises(wp.RecipeError, match=r"TTM\.teacher is Linear"):
        wp.Recipe(TTM(teacher=nn.Linear(2, 2))).to_toml()
