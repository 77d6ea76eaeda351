"""Regression losses against torch's own, and shapes that would broadcast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wellposed.tasks import Regress

TORCH = {"squared": F.mse_loss, "absolute": F.l1_loss, "huber": lambda p, y, **k: F.huber_loss(p, y, delta=0.7, **k)}


@pytest.mark.parametrize("error", TORCH)
def test_values_are_torchs(error: Any) -> None:
    torch.manual_seed(0)
    p, y = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    found = Regress(error, delta=0.7).loss({"prediction": p}, {"y": y})
    torch.testing.assert_close(found, TORCH[error](p, y, reduction="none"))


@pytest.mark.parametrize("error", TORCH)
def test_gradient(error: Any) -> None:
    p = torch.tensor([-2.0, -0.6, 0.1, 3.0], dtype=torch.float64, requires_grad=True)
    y = torch.zeros(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q: Regress(error).loss({"prediction": q}, {"y": y}), (p,))


def test_a_single_output_column_meets_a_vector_of_targets() -> None:
    model, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5)
    task = Regress()
    out = task.forward(model, {"x": x, "y": y})
    assert out["prediction"].shape == (5,)
    torch.testing.assert_close(task.loss(out, {"y": y}), (model(x)[:, 0] - y) ** 2)


def test_several_outputs_average() -> None:
    p, y = torch.randn(5, 2), torch.randn(5, 2)
    torch.testing.assert_close(Regress().loss({"prediction": p}, {"y": y}), ((p - y) ** 2).mean(1))


def test_shapes_that_would_broadcast_are_refused() -> None:
    task = Regress()
    batch = {"x": torch.randn(5, 3), "y": torch.randn(5, 1)}
    out = task.forward(nn.Linear(3, 2), batch)
    with pytest.raises(ValueError, match=r"prediction has shape \(5, 2\), y has \(5, 1\)"):
        task.loss(out, batch)


@pytest.mark.parametrize(("wrong", "word"), [({"error": "cubic"}, "squared, absolute, huber"), ({"delta": 0}, "delta")])
def test_bad_settings(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Regress(**wrong)


def test_repr_evaluates_back() -> None:
    again = eval(repr(Regress("huber", delta=0.5)))
    assert (again.error, again.delta) == ("huber", 0.5)
