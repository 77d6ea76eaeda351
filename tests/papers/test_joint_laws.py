"""The laws' mutual information and critics, by Monte Carlo and quadrature."""

from __future__ import annotations

import math

import pytest
import torch

from wellposed.papers.joint_laws import CorrelatedGaussians, Cubed, JointLaw, MixedCorrelations, NoisySymbols

LAWS = [CorrelatedGaussians(3, 0.7), MixedCorrelations(0.9), NoisySymbols(5), Cubed(CorrelatedGaussians(2, 0.5))]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_information_is_the_mean_of_the_critic(law: JointLaw) -> None:
    n, g = 40_000, torch.Generator().manual_seed(0)
    scores = law.critic(*law.sample(n, g))
    assert float(scores.mean()) == pytest.approx(law.information, abs=4 * float(scores.std()) / math.sqrt(n))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_the_ratio_has_mean_one_over_independent_pairs(law: JointLaw) -> None:
    n, g = 40_000, torch.Generator().manual_seed(1)
    ratio = law.critic(law.sample(n, g)[0], law.sample(n, g)[1]).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * float(ratio.std()) / math.sqrt(n))


def test_a_given_information() -> None:
    assert CorrelatedGaussians.of_information(20, 10).information == pytest.approx(10, rel=1e-12)
