"""Tabular decision processes, against loops, enumeration and closed forms."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from wellposed.parts.tabular import MDP, garnet, greedy, soft_max, value_iteration


def problem(seed: int = 0, states: int = 4, actions: int = 3, discount: float = 0.8) -> MDP:
    return garnet(states, actions, 2, discount, torch.Generator().manual_seed(seed))


def policies(*batch: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(*batch, 4, 3, generator=g, dtype=torch.float64).softmax(-1)


def test_backup_by_loops() -> None:
    mdp, v = problem(), torch.arange(4.0, dtype=torch.float64)
    for s, a in product(range(4), range(3)):
        expected = mdp.reward[s, a] + 0.8 * sum(mdp.transition[s, a, n] * v[n] for n in range(4))
        torch.testing.assert_close(mdp.backup(v)[s, a], expected)


def test_evaluation_solves_the_bellman_equation_of_every_policy() -> None:
    mdp, pi = problem(), policies(2, 5)
    q = mdp.evaluate(pi)
    assert q.shape == (2, 5, 4, 3)
    torch.testing.assert_close(q, mdp.backup((pi * q).sum(-1)), rtol=0, atol=1e-13)
    torch.testing.assert_close(q[1, 3], mdp.evaluate(pi[1, 3]), rtol=0, atol=1e-13)


def test_evaluation_is_differentiable() -> None:
    mdp = problem()
    assert torch.autograd.gradcheck(lambda z: mdp.evaluate(z.softmax(-1)), policies().requires_grad_())


def test_value_iteration_finds_the_best_of_all_policies() -> None:
    mdp = problem()
    every = torch.stack([torch.eye(3, dtype=torch.float64)[list(p)] for p in product(range(3), repeat=4)])
    best = mdp.evaluate(every).amax(0)
    q = value_iteration(mdp)
    torch.testing.assert_close(q, best, rtol=0, atol=1e-9)
    torch.testing.assert_close(mdp.evaluate(greedy(q)), best, rtol=0, atol=1e-12)


def test_soft_value_iteration_is_the_optimum_with_entropy_as_a_reward() -> None:
    """The soft-greedy policy attains its fixed point, and other policies stay below."""
    mdp, t = problem(), 0.5
    q = value_iteration(mdp, t)

    def worth(pi: Tensor) -> Tensor:
        chain = torch.einsum("sa,san->sn", pi, mdp.transition)
        earned = (pi * (mdp.reward - t * pi.log())).sum(-1)
        return torch.linalg.solve(torch.eye(4, dtype=torch.float64) - mdp.discount * chain, earned)

    torch.testing.assert_close(worth(greedy(q, t)), soft_max(q, t), rtol=0, atol=1e-8)
    for pi in policies(20):
        assert (worth(pi) < soft_max(q, t) + 1e-12).all()


def test_soft_maximum_tends_to_the_maximum() -> None:
    q = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(soft_max(q), torch.tensor([3.0, 0.0], dtype=torch.float64))
    assert torch.equal(greedy(q), torch.tensor([[0.0, 1, 0], [1, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(soft_max(q, 1e-3)[0], q.new_tensor(3.0))
    torch.testing.assert_close(soft_max(q, 2.0)[1], 2 * q.new_tensor(3.0).log())


def test_single_precision_ends() -> None:
    mdp = problem()
    rough = MDP(mdp.transition.float(), mdp.reward.float(), mdp.discount)
    torch.testing.assert_close(value_iteration(rough).double(), value_iteration(mdp), rtol=0, atol=1e-5)


def test_small_changes_are_not_taken_for_rounding() -> None:
    """With a discount near 1 values grow in steps that hardly shrink, in single precision by less than it resolves."""
    loop = MDP(torch.ones(1, 1, 1), torch.ones(1, 1), 0.999)
    # 1000 = 1 / (1 - discount); every backup rounds by 2^-24 of that, and 1000 of them add up
    assert abs(float(value_iteration(loop, tolerance=0.01)) - 1000) < 0.01 + 1000 * 1000 * 2**-24
    mdp = garnet(5, 2, 2, 0.999, torch.Generator().manual_seed(0), torch.float32)
    q = value_iteration(mdp, tolerance=0.01).double()
    precise = MDP(mdp.transition.double(), mdp.reward.double(), mdp.discount)
    assert (q - value_iteration(precise)).abs().max() < 0.01 + float(q.abs().max()) * 2 * 1000 * 2**-24


def test_the_smallest_problems() -> None:
    one = MDP(torch.ones(1, 1, 1), torch.tensor([[2.0]]), 0.0)
    assert value_iteration(one) == one.evaluate(torch.ones(1, 1)) == 2
    assert value_iteration(MDP(torch.ones(1, 2, 1), torch.zeros(1, 2), 0.9)).tolist() == [[0.0, 0.0]]


def test_garnet_has_its_branching_and_its_seed() -> None:
    mdp = garnet(10, 3, 4, 0.9, torch.Generator().manual_seed(3))
    assert ((mdp.transition > 0).sum(-1) == 4).all()
    assert mdp.reward.abs().max() < 1
    assert torch.equal(mdp.transition, garnet(10, 3, 4, 0.9, torch.Generator().manual_seed(3)).transition)
    assert (garnet(5, 2, 1, 0.9).transition.amax(-1) == 1).all()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"reward": torch.zeros(3)}, r"rewards \(S, A\)"),
        ({"transition": torch.ones(2, 2, 3) / 3}, r"transitions \(S, A, S\)"),
        ({"transition": torch.ones(2, 2, 2)}, "sum to 1"),
        ({"discount": 1.0}, "discount must be in"),
        ({"transition": torch.full((2, 2, 2), torch.nan)}, "sum to 1"),
        ({"reward": torch.full((2, 2), -torch.inf)}, "rewards must be finite"),
    ],
)
def test_what_is_no_problem(wrong: dict[str, Any], word: str) -> None:
    fine: dict[str, Any] = {"transition": torch.ones(2, 2, 2) / 2, "reward": torch.zeros(2, 2), "discount": 0.5}
    MDP(**fine)
    with pytest.raises(ValueError, match=word):
        MDP(**(fine | wrong))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"branching must be in 1 ... 4, got 5"):
        garnet(4, 2, 5, 0.9)
    with pytest.raises(ValueError, match="tolerance above 0"):
        value_iteration(problem(), tolerance=0.0)
