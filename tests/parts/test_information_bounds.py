"""Bounds on mutual information, from their formulas and from optimal critics."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wellposed.papers.joint_laws import CorrelatedGaussians
from wellposed.parts import information_bounds as b
from wellposed.parts.critics import score_matrix


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_against_formulas() -> None:
    joint, marginal = rand(6), rand(2, 6, seed=1)
    t, s = joint.tolist(), marginal.flatten().tolist()
    mean = sum(t) / 6
    exp = sum(map(math.exp, s)) / 12
    assert float(b.donsker_varadhan(joint, marginal)) == pytest.approx(mean - math.log(exp), rel=1e-12)
    assert float(b.nwj(joint, marginal)) == pytest.approx(mean - exp / math.e, rel=1e-12)
    js = -sum(math.log(1 + math.exp(-v)) for v in t) / 6 - sum(math.log(1 + math.exp(v)) for v in s) / 12
    assert float(b.jensen_shannon(joint, marginal)) == pytest.approx(js, rel=1e-12)
    m = rand(4, 4)
    nce = sum(math.log(4 * math.exp(m[i, i]) / sum(math.exp(v) for v in m[i])) for i in range(4)) / 4
    assert float(b.info_nce(m)) == pytest.approx(nce, rel=1e-12)
    assert b.log_mean_exp(torch.full((3,), 500.0)) == 500


def test_optimal_critics_give_the_information() -> None:
    """Half a nat; standard errors of 20000 pairs are at most .012."""
    law = CorrelatedGaussians.of_information(2, 0.5)
    g = torch.Generator().manual_seed(0)
    (x, y), (a, _), (_, c) = (law.sample(20_000, g) for _ in range(3))
    joint, marginal = law.critic(x, y), law.critic(a, c)
    assert float(b.donsker_varadhan(joint, marginal)) == pytest.approx(0.5, abs=0.05)
    assert float(b.nwj(joint + 1, marginal + 1)) == pytest.approx(0.5, abs=0.05)


def test_info_nce_is_capped_and_the_others_are_not() -> None:
    law = CorrelatedGaussians.of_information(20, 10)
    x, y = law.sample(64, torch.Generator().manual_seed(0))
    matrix = score_matrix(law.critic, x, y)
    assert 0.95 * math.log(64) < b.info_nce(matrix) <= math.log(64)
    assert b.donsker_varadhan(matrix.diagonal(), matrix[~torch.eye(64, dtype=torch.bool)]) > 2 * math.log(64)


@pytest.mark.parametrize("bound", [b.donsker_varadhan, b.nwj, b.jensen_shannon])
def test_the_optimal_critic_is_stationary(bound: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A law of two bits with whole counts: no move of the log ratio raises the bound."""
    together = torch.tensor([[3, 1], [1, 3]])  # of 8; of 4 where independent: 1 each
    ratio = (together / 2).log() + (bound is b.nwj)
    scores = ratio.double().requires_grad_()
    bound(scores.flatten().repeat_interleave(together.flatten()), scores).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-7
