"""Tabular Markov decision processes: Bellman operators, exact policy evaluation, value iteration, random problems."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MDP:
    """A discounted decision process with S states and A actions.

    Attributes:
        transition: (S, A, S), probability of the next state; rows sum to 1.
        reward: (S, A), expected reward.
        discount: in [0, 1).

    Raises:
        ValueError: for shapes that do not fit, rows that are no distributions, rewards that are not finite, or a
            discount out of its range.
    """

    transition: Tensor
    reward: Tensor
    discount: float

    def __post_init__(self) -> None:
        states, actions = self.reward.shape if self.reward.ndim == 2 else (-1, -1)
        if self.transition.shape != (states, actions, states):
            raise ValueError(
                "an MDP needs rewards (S, A) and transitions (S, A, S), "
                f"got {tuple(self.reward.shape)} and {tuple(self.transition.shape)}"
            )
        slack = 100 * torch.finfo(self.transition.dtype).eps
        if not bool((self.transition >= 0).all()) or not bool(((self.transition.sum(-1) - 1).abs() <= slack).all()):
            raise ValueError("the transitions of a state and an action must be at least 0 and sum to 1")
        if not bool(self.reward.isfinite().all()):
            raise ValueError("rewards must be finite")
        if not 0 <= self.discount < 1:
            raise ValueError(f"the discount must be in [0, 1), got {self.discount:g}")

    def backup(self, values: Tensor) -> Tensor:
        """r + discount P v: of values of the next state (..., S) those of state and action (..., S, A)."""
        return self.reward + self.discount * torch.einsum("san,...n->...sa", self.transition, values)

    def evaluate(self, policy: Tensor) -> Tensor:
        """Exact action values of a policy (..., S, A), by a linear solve; the same shape."""
        chain = torch.einsum("...sa,san->...sn", policy, self.transition)
        eye = torch.eye(chain.shape[-1], dtype=chain.dtype, device=chain.device)
        earned = (policy * self.reward).sum(-1, keepdim=True)
        return self.backup(torch.linalg.solve(eye - self.discount * chain, earned).squeeze(-1))


def soft_max(q: Tensor, temperature: float = 0.0) -> Tensor:
    """max over policies of <pi, q> + temperature H(pi), for action values (..., A): the maximum at temperature 0."""
    if temperature == 0:
        return q.amax(-1)
    return temperature * (q / temperature).logsumexp(-1)


def greedy(q: Tensor, temperature: float = 0.0) -> Tensor:
    """The policy that attains ``soft_max``: softmax(q / temperature), at 0 all mass on the (first) best action."""
    if temperature == 0:
        return torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)
    return (q / temperature).softmax(-1)


def value_iteration(mdp: MDP, temperature: float = 0.0, tolerance: float = 1e-9) -> Tensor:
    """Optimal action values, (S, A), up to ``tolerance`` in every entry.

    Args:
        mdp: the problem.
        temperature: price of the policy's entropy, which then counts as a reward; 0: the usual optimum.
        tolerance: above 0; what the precision of the dtype cannot reach is not waited for.

    Raises:
        ValueError: for a negative temperature or a tolerance that is not positive.
    """
    if not temperature >= 0 or not tolerance > 0:
        raise ValueError(f"temperature must be at least 0 and tolerance above 0, got {temperature:g}, {tolerance:g}")
    q = mdp.backup(soft_max(mdp.reward, temperature))
    # The operator contracts by the discount g: what is left is at most g / (1 - g) times the last change, and each
    # change at most g times the one before. So the number of steps is known at once, whatever rounding does to changes.
    change, small = float((q - mdp.reward).abs().max()), tolerance * (1 - mdp.discount)
    if mdp.discount * change <= small:
        return q
    for _ in range(math.ceil(math.log(small / (mdp.discount * change)) / math.log(mdp.discount))):
        before, q = q, mdp.backup(soft_max(q, temperature))
        if mdp.discount * float((q - before).abs().max()) <= small:
            break
    return q


def garnet(
    states: int,
    actions: int,
    branching: int,
    discount: float,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> MDP:
    """A random problem: each state and action leads to ``branching`` states, with rewards uniform in (-1, 1).

    Next states are drawn without replacement, their probabilities are the gaps between sorted uniform numbers
    (Archibald, McKinnon, Thomas 1995, On the generation of Markov decision processes).

    Raises:
        ValueError: if ``branching`` is not in 1 ... ``states``.
    """
    if not 1 <= branching <= states:
        raise ValueError(f"branching must be in 1 ... {states}, got {branching}")
    device = generator.device if generator is not None else None
    shape = (states, actions)

    def uniform(n: int) -> Tensor:
        return torch.rand(*shape, n, generator=generator, dtype=dtype, device=device)

    cuts = uniform(branching - 1).sort(-1).values
    edges = torch.cat([cuts.new_zeros(*shape, 1), cuts, cuts.new_ones(*shape, 1)], -1)
    following = uniform(states).argsort(-1)[..., :branching]
    transition = edges.new_zeros(*shape, states).scatter(-1, following, edges.diff(dim=-1))
    return MDP(transition, 2 * uniform(1).squeeze(-1) - 1, discount)
