"""Logged bandits with a known truth: a classification set in which the right class is the rewarded action."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .arenas import digits

WORDS = (
    "digits as a 10-armed bandit, cost -1 for the right class; linear policies learnt from 40 (logging) and 200 labels"
)


@dataclass(frozen=True)
class Logs:
    """What was decided and what came of it.

    Attributes:
        row: which context of the bandit, (n,).
        x: contexts (n, d).
        action: (n,).
        cost: (n,), in [-1, 0].
        logging: the logging policy's probabilities of all actions, (n, K).
    """

    row: Tensor
    x: Tensor
    action: Tensor
    cost: Tensor
    logging: Tensor

    @property
    def propensity(self) -> Tensor:
        """Probability with which each action was taken, (n,)."""
        return self.logging.gather(-1, self.action[:, None]).squeeze(-1)


@dataclass(frozen=True)
class Bandit:
    """Contexts (N, d), and what every action costs there (N, K), in [-1, 0]."""

    x: Tensor
    cost: Tensor

    def risk(self, policy: Tensor) -> Tensor:
        """Expected cost of a policy's probabilities (N, K) over the contexts, a scalar."""
        return (policy * self.cost).sum(-1).mean()

    def logged(self, logging: Tensor, rows: int, generator: torch.Generator) -> Logs:
        """``rows`` decisions of the logging policy (N, K), on contexts drawn with replacement."""
        at = torch.randint(len(self.x), (rows,), generator=generator)
        action = torch.multinomial(logging[at], 1, generator=generator)
        return Logs(at, self.x[at], action[:, 0], self.cost[at].gather(-1, action)[:, 0], logging[at])


def of_classes(x: Tensor, y: Tensor, classes: int) -> Bandit:
    """Action k is the answer k: cost -1 where it is right, else 0."""
    return Bandit(x, -F.one_hot(y, classes).to(x.dtype))


def linear_scores(x: Tensor, y: Tensor, classes: int, decay: float = 1e-2) -> Tensor:
    """Weights (classes, d + 1) of logistic regression with weight decay, the last column for the constant."""
    features, target = with_constant(x), F.one_hot(y, classes).to(x.dtype)
    weight = torch.zeros(classes, features.shape[1], dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -(target * (features @ weight.T).log_softmax(-1)).sum(-1).mean() + decay * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach()


def with_constant(x: Tensor) -> Tensor:
    """A feature more, which is 1."""
    return F.pad(x, (0, 1), value=1.0)


def digits_bandit(seed: int) -> tuple[Bandit, Tensor, Tensor]:
    """The 597 test digits as a bandit, and scores (597, 10) of a model to log with and of a better one."""
    sample = digits(seed, 1200)
    x = with_constant(sample.x_test)
    logging = linear_scores(sample.x[:40], sample.y[:40], 10)
    better = linear_scores(sample.x[40:240], sample.y[40:240], 10)
    return of_classes(sample.x_test, sample.y_test, 10), x @ logging.T, x @ better.T
