"""Logged bandits made of classification: what is logged, and the models that log."""

from __future__ import annotations

import math

import torch
from torch import nn

from wellposed.papers.bandits import Bandit, digits_bandit, linear_scores, of_classes, with_constant


def clusters() -> tuple[Bandit, torch.Tensor]:
    """Four clusters as a bandit, and their numbers."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(4, (400,), generator=g)
    centres = 3 * torch.randn(4, 5, generator=g, dtype=torch.float64)
    return of_classes(centres[y] + torch.randn(400, 5, generator=g, dtype=torch.float64), y, 4), y


def test_logistic_regression_is_at_its_optimum() -> None:
    bandit, y = clusters()
    weight = linear_scores(bandit.x, y, 4).requires_grad_()
    loss = nn.functional.cross_entropy(with_constant(bandit.x) @ weight.T, y) + 1e-2 * weight.square().sum()
    (slope,) = torch.autograd.grad(loss, weight)
    assert slope.abs().max() < 1e-3


def test_logs_are_what_the_policy_did() -> None:
    bandit, y = clusters()
    logging = (2.0 * nn.functional.one_hot((y + 1) % 4, 4) + nn.functional.one_hot(y, 4)).softmax(-1)
    logs = bandit.logged(logging, 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(logs.x, bandit.x[logs.row])
    assert torch.equal(logs.cost, -(logs.action == y[logs.row]).double())
    assert torch.equal(logs.propensity, logging[logs.row, logs.action])
    assert abs(logs.cost.mean() - bandit.risk(logging)) < 5 * math.sqrt(0.25 / 20_000)


def test_the_model_of_more_digits_is_better() -> None:
    bandit, logging, better = digits_bandit(0)
    assert bandit.cost.shape == logging.shape == better.shape == (597, 10)
    right = [float((-bandit.cost).gather(1, s.argmax(1, keepdim=True)).mean()) for s in (logging, better)]
    assert 0.5 < right[0] < right[1]
    assert torch.equal(digits_bandit(0)[1], logging)
