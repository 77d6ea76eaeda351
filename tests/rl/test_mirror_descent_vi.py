"""Mirror-descent value iteration: its formulas term by term, the average inside, and the bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed.parts.tabular import MDP, garnet, greedy, value_iteration
from wellposed.rl.mirror_descent_vi import averaged_q, averaging_bound, mirror_descent_vi, munchausen_target

K = 40


def problem(seed: int = 0) -> tuple[MDP, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return garnet(6, 3, 2, 0.8, g), torch.randn(K, 6, 3, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(("kl", "entropy"), [(0.7, 0.0), (0.0, 0.4), (0.7, 0.4)])
def test_every_step_by_the_formula(kl: float, entropy: float) -> None:
    mdp, errors = problem()
    found = mirror_descent_vi(mdp, K, kl=kl, entropy=entropy, errors=errors)
    pi, q = found.policy, found.q
    assert torch.equal(q[0], torch.zeros(6, 3, dtype=torch.float64))
    for k in range(5):
        tilted = pi[k] ** (kl / (kl + entropy)) * (q[k] / (kl + entropy)).exp()
        torch.testing.assert_close(pi[k + 1], tilted / tilted.sum(-1, keepdim=True), rtol=0, atol=1e-12)
        to_last = (pi[k + 1] * (pi[k + 1] / pi[k]).log()).sum(-1)
        own = -(pi[k + 1] * pi[k + 1].log()).sum(-1)
        value = (pi[k + 1] * q[k]).sum(-1) - kl * to_last + entropy * own
        following = mdp.reward + 0.8 * torch.einsum("san,n->sa", mdp.transition, value) + errors[k]
        torch.testing.assert_close(q[k + 1], following, rtol=0, atol=1e-12)


def test_the_greedy_step_is_the_best_of_all_policies() -> None:
    mdp, errors = problem()
    found = mirror_descent_vi(mdp, 3, kl=0.5, entropy=0.2, errors=errors[:3])
    pi, q, last = found.policy[3], found.q[2], found.log_policy[2]

    def worth(p: Tensor) -> Tensor:
        return (p * (q - 0.5 * (p.log() - last) - 0.2 * p.log())).sum(-1)

    for p in torch.rand(50, 6, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64).softmax(-1):
        assert (worth(p) < worth(pi)).all()


def test_without_regularisation_it_is_value_iteration() -> None:
    mdp, errors = problem()
    found = mirror_descent_vi(mdp, K, kl=0.0, errors=errors)
    q = torch.zeros(6, 3, dtype=torch.float64)
    for k in range(K):
        assert torch.equal(found.policy[k + 1], greedy(q))
        q = mdp.backup(q.amax(-1)) + errors[k]
    assert torch.equal(found.q[-1], q)


@pytest.mark.parametrize(("kl", "entropy"), [(0.7, 0.0), (0.0, 0.4), (0.7, 0.4)])
def test_policies_are_softmax_policies_of_the_average_q(kl: float, entropy: float) -> None:
    mdp, errors = problem()
    found = mirror_descent_vi(mdp, K, kl=kl, entropy=entropy, errors=errors)
    logits = averaged_q(found.q, kl, entropy)
    torch.testing.assert_close(found.policy[1:], logits[:-1].softmax(-1), rtol=0, atol=1e-12)


def test_the_average_by_loops() -> None:
    q = problem()[1]
    torch.testing.assert_close(averaged_q(q, 0.5)[3], (q[0] + q[1] + q[2] + q[3]) / 0.5)
    beta, h = 0.5 / 0.75, torch.zeros(6, 3, dtype=torch.float64)
    for k in range(4):
        h = beta * h + (1 - beta) * q[k]
        torch.testing.assert_close(averaged_q(q, 0.5, 0.25)[k], h / 0.25)


def test_without_errors_it_converges() -> None:
    """With a KL alone at a rate of 1/k to the optimum; with entropy to the optimum that counts entropy as reward."""
    mdp, errors = problem()
    gaps = (value_iteration(mdp) - mdp.evaluate(mirror_descent_vi(mdp, 400).policy)).flatten(1).amax(1)
    bound = averaging_bound(mdp, torch.zeros(400, *errors.shape[1:], dtype=torch.float64), 1.0)
    assert (gaps[1:] <= bound).all()
    assert bound[-1] < 0.3 * gaps[0]
    soft = mirror_descent_vi(mdp, 400, kl=0.5, entropy=0.4).q[-1]
    torch.testing.assert_close(soft, value_iteration(mdp, 0.4), rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kl", [0.1, 1.0])
def test_bound_holds(seed: int, kl: float) -> None:
    mdp, errors = problem(seed)
    found = mirror_descent_vi(mdp, K, kl=kl, errors=errors)
    gap = (value_iteration(mdp) - mdp.evaluate(found.policy[1:])).abs().flatten(1).amax(1)
    bound = averaging_bound(mdp, errors, kl)
    assert bound.shape == (K,)
    assert (gap <= bound).all()


def test_bound_by_hand() -> None:
    mdp = MDP(torch.ones(1, 2, 1), torch.tensor([[0.5, -1.0]]), 0.5)
    errors = torch.tensor([[[1.0, 0.0]], [[-3.0, 1.0]]])
    v = (1 + 0.2 * torch.tensor(2.0).log()) / 0.5
    expected = torch.stack([2 / 0.5 * 1 + 4 * v / 0.5, 2 / 0.5 * 1 + 4 * v / 0.5 / 2])
    torch.testing.assert_close(averaging_bound(mdp, errors, 0.2), expected)


def test_many_sharp_iterations_stay_finite() -> None:
    """Sums of q over lambda reach thousands, and policies underflow."""
    mdp, _ = problem()
    found = mirror_descent_vi(mdp, 500, kl=1e-3)
    assert found.q.isfinite().all()
    assert found.log_policy.isfinite().all()
    torch.testing.assert_close(found.policy.sum(-1), torch.ones(501, 6, dtype=torch.float64))


def test_munchausen_is_mirror_descent() -> None:
    """Theorem 1 of Munchausen RL: kl = alpha t, entropy = (1 - alpha) t, for q - alpha t log pi."""
    mdp, _ = problem()
    alpha, t = 0.6, 0.5
    states, actions = (i.flatten() for i in torch.meshgrid(torch.arange(6), torch.arange(3), indexing="ij"))
    expected = mirror_descent_vi(mdp, K, kl=alpha * t, entropy=(1 - alpha) * t)
    q = alpha * t * expected.log_policy[0]  # its q less alpha t log pi_0 is 0
    for k in range(K):
        log_pi = (q / t).log_softmax(-1)
        torch.testing.assert_close(log_pi, expected.log_policy[k + 1], rtol=0, atol=1e-11)
        sure = [munchausen_target(q[states], actions, mdp.reward.flatten(), q[n].expand(18, 3), 0.8, alpha=alpha,
                                  temperature=t, lowest=None) for n in range(6)]  # fmt: skip
        q = (torch.stack(sure, -1).view(6, 3, 6) * mdp.transition).sum(-1)
        torch.testing.assert_close(q - alpha * t * log_pi, expected.q[k + 1], rtol=0, atol=1e-11)


def test_munchausen_target_by_loops() -> None:
    g = torch.Generator().manual_seed(0)
    q, following = torch.randn(2, 4, 3, generator=g, dtype=torch.float64)
    action, discount = torch.tensor([0, 2, 1, 1]), torch.tensor([0.9, 0.0, 0.9, 0.9], dtype=torch.float64)
    reward = torch.randn(4, generator=g, dtype=torch.float64)
    found = munchausen_target(q, action, reward, following, discount, temperature=0.5, lowest=-0.4)
    for b in range(4):
        bonus = max(float(0.5 * (q[b] / 0.5).log_softmax(0)[action[b]]), -0.4)
        pi = (following[b] / 0.5).softmax(0)
        soft = (pi * (following[b] - 0.5 * pi.log())).sum()
        assert found[b].item() == pytest.approx(float(reward[b] + 0.9 * bonus + discount[b] * soft))


def test_a_network_learns_from_the_target() -> None:
    mdp, _ = problem()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    target = nn.Sequential(nn.Embedding(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(300):
        if step % 15 == 0:
            target.load_state_dict(net.state_dict())
        state, action = torch.randint(6, (64,)), torch.randint(3, (64,))
        following = torch.multinomial(mdp.transition[state, action], 1)[:, 0]
        wanted = munchausen_target(target(state), action, mdp.reward[state, action], target(following), 0.8)
        assert not wanted.requires_grad
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(net(state).gather(1, action[:, None])[:, 0], wanted))
        optimizer.step()
    policy = greedy(net(torch.arange(6)).detach())
    uniform = torch.full((6, 3), 1 / 3, dtype=torch.float64)
    best = value_iteration(mdp)
    assert (best - mdp.evaluate(policy)).amax() < 0.3 * (best - mdp.evaluate(uniform)).amax()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"kl": -1.0}, "kl and entropy must be at least 0"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"errors": torch.zeros(2, 6, 3)}, r"errors must be \(K, S, A\)"),
    ],
)
def test_bad_settings(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        mirror_descent_vi(problem()[0], **({"iterations": 3} | wrong))


def test_other_bad_settings() -> None:
    with pytest.raises(ValueError, match="average nothing"):
        averaged_q(torch.zeros(3, 2, 2), 0.0)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        munchausen_target(torch.zeros(1, 2), torch.zeros(1).long(), torch.zeros(1), torch.zeros(1, 2), 0.9, alpha=1.5)
