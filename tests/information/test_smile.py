"""SMILE, the variance it is about, and the tests of consistency."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wellposed.information.mutual_information import mutual_information
from wellposed.information.smile import SMILE, information_consistency, partition_variance, smile_bound
from wellposed.papers.joint_laws import CorrelatedGaussians
from wellposed.parts.critics import SeparableCritic, mlp_critic, off_diagonal, score_matrix
from wellposed.parts.information_bounds import donsker_varadhan, jensen_shannon


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    joint, marginal = 3 * rand(5), 3 * rand(5, 4, seed=1)
    clipped = [min(max(math.exp(v), math.exp(-1.5)), math.exp(1.5)) for v in marginal.flatten().tolist()]
    expected = sum(joint.tolist()) / 5 - math.log(sum(clipped) / 20)
    assert float(smile_bound(joint, marginal, 1.5)) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: smile_bound(a, b, 1.5), (
        joint.requires_grad_(), marginal.requires_grad_(),
    ))  # fmt: skip


def test_without_clipping_it_is_donsker_varadhan_bit_for_bit() -> None:
    joint, marginal = 9 * rand(5), 9 * rand(5, 4, seed=1)
    assert torch.equal(smile_bound(joint, marginal, math.inf), donsker_varadhan(joint, marginal))


def test_its_gradient_is_the_classifiers() -> None:
    critic = SeparableCritic(nn.Linear(2, 3), nn.Linear(2, 3)).double()
    x, y = rand(6, 2).requires_grad_(), rand(6, 2, seed=1)
    matrix = score_matrix(critic, x, y)
    joint, marginal = matrix.diagonal(), off_diagonal(matrix)
    value = SMILE(critic, tau=0.5)(x, y)
    assert value.item() == smile_bound(joint, marginal, 0.5).item()
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(jensen_shannon(joint, marginal), x))


@pytest.mark.parametrize("rho", [0.2, 0.5])
def test_variance_of_the_partition(rho: float) -> None:
    """E_Q r^2 - 1 by quadrature over independent normals."""
    law = CorrelatedGaussians(1, rho)
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    x, y = (torch.from_numpy(v)[..., None] for v in np.meshgrid(nodes, nodes))
    weight = torch.from_numpy(np.outer(weights, weights)) / (2 * math.pi)
    square = float((weight * (2 * law.critic(x, y)).exp()).sum())
    assert (square - 1) / 64 == pytest.approx(partition_variance(law.information, 64), rel=1e-9)
    assert square >= math.exp(law.information)


def test_trained_by_mutual_information() -> None:
    law = CorrelatedGaussians(1, 0.9)
    x, y = law.sample(3000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = mutual_information(x, y, SMILE(mlp_critic(1, 1, (32,))), steps=150, batch=32, lr=5e-3)
    assert found.value == pytest.approx(law.information, abs=0.25)


def test_consistency_of_an_estimator_that_is_right() -> None:
    """The one for Gaussians, by log determinants of correlations, with a process that adds noise of its own to y."""

    def gaussian(x: Tensor, y: Tensor) -> float:
        both = torch.corrcoef(torch.cat([x, y], 1).T)
        d = x.shape[1]
        return float((both[:d, :d].logdet() + both[d:, d:].logdet() - both.logdet()) / 2)

    n = 20_000
    x, y = (v.double() for v in CorrelatedGaussians(2, 0.8).sample(n, torch.Generator().manual_seed(0)))
    found = information_consistency(gaussian, x, y, lambda rows: rows[:, :1] + 0.1 * rand(len(rows), 1, seed=4))
    error = 4 * math.sqrt(2 / n)  # of sums of log determinants, generously
    assert found.plain == pytest.approx(CorrelatedGaussians(2, 0.8).information, abs=error)
    assert found.independent == pytest.approx(0, abs=error)
    assert found.processed == pytest.approx(1, abs=error)
    assert found.doubled == pytest.approx(2, abs=2 * error)


def test_what_the_consistency_tests_ask() -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    def estimate(x: Tensor, y: Tensor) -> float:
        asked.append((x, y))
        return 0.0

    x = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 2, 2)
    found = information_consistency(estimate, x, -x, join=lambda a, b: torch.cat([a, b], 1))
    assert math.isnan(found.processed)
    assert [tuple(b.shape) for _, b in asked] == [(5, 1, 2, 2), (5, 1, 2, 2), (5, 2, 2, 2), (5, 2, 2, 2)]
    assert (asked[1][0] != -asked[1][1]).all()
    assert torch.equal(asked[2][1][:, 1], x[:5, 0])
    assert torch.equal(asked[3][0][:, 1], x[5:, 0])
    assert torch.equal(asked[3][1][:, 1], -x[5:, 0])


def test_consistency_of_numbers() -> None:
    """Rows (N,) stand side by side, too, and not one after the other."""
    seen = []

    def estimate(x: Tensor, y: Tensor) -> float:
        seen.append((x.shape, y.shape))
        return 1.0

    information_consistency(estimate, rand(6), torch.arange(6))
    assert seen == [((3, 1), (3, 1)), ((3, 1), (3, 1)), ((3, 1), (3, 2)), ((3, 2), (3, 2))]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="SMILE: tau must be above 0, got 0"):
        SMILE(mlp_critic(1, 1), tau=0.0)
    with pytest.raises(ValueError, match="smile_bound: tau must be above 0, got -1"):
        smile_bound(rand(2), rand(2), -1.0)
    with pytest.raises(ValueError, match="at least 2 pairs, row by row; got 1 and 1 rows"):
        SMILE(mlp_critic(1, 1))(rand(1, 1), rand(1, 1))
    with pytest.raises(ValueError, match="at least 4 pairs, row by row; got 4 and 3 rows"):
        information_consistency(lambda x, y: 0.0, rand(4, 1), rand(3, 1))
