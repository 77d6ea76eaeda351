"""Mutual information of two samples: train a critic on some pairs, read the others."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.modes import evaluating
from ..parts.critics import Critic, mlp_critic, paired_scores
from ._samples import refuse_gaps
from .mine import MINE

__all__ = ["InformationEstimate", "mutual_information"]

BLOCKS = 20  # of the jackknife
PARTS = 10  # how often training stops to look at the pairs kept for choosing


class Estimator(Protocol):
    """What `MINE` and `SMILE` have in common: a critic, a bound of scores, and what to ascend on a batch."""

    critic: Critic

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Of a batch, a scalar to ascend."""

    def bound(self, joint: Tensor, marginal: Tensor) -> Tensor:
        """From scores of pairs (n,), and of pairs that do not belong together (count, n)."""


@dataclass(frozen=True)
class InformationEstimate:
    """Mutual information in nats.

    Attributes:
        value: the bound on pairs that neither trained nor chose the critic.
        error: its standard error over those pairs, by the jackknife; of the reading, not of the training.
        pairs: how many were read.
        curve: the bound on the pairs that choose, as training went on.
        estimator: with the critic that was best on these.
    """

    value: float
    error: float
    pairs: int
    curve: tuple[float, ...]
    estimator: Estimator


def mutual_information(
    x: Tensor,
    y: Tensor,
    estimator: Estimator | None = None,
    *,
    steps: int = 2000,
    batch: int = 256,
    lr: float = 1e-3,
    partners: int = 10,
    seed: int = 0,
) -> InformationEstimate:
    """Estimate I(X; Y) from pairs: 60 % train the critic, 20 % choose the best of ten moments, 20 % are read.

    Autocast and ``no_grad`` around it have no say: in a region of autocast weights that train would be read from a
    cache.

    Args:
        x, y: (N, ...) on one device, row by row, independent rows; whatever the critic takes. At least 100 rows. What
            trained the critic and is read again, as copies of rows are, counts as information.
        estimator: `MINE` or `SMILE` around your critic, trained in place; None: MINE with an MLP of two layers of 64
            on standardised, flattened rows. One whose critic has nothing to train is read on all pairs.
        steps: of Adam.
        batch: pairs a step, drawn with replacement.
        lr: of Adam.
        partners: other rows each row is read with.
        seed: of the split, the batches, the shuffling and the default critic's weights.

    Returns:
        the estimate. It is a lower bound up to its error for MINE: a critic that has learned too little, or too few
        pairs, make it too low.

    Raises:
        ValueError: for fewer than 100 pairs, x and y of different length, NaN or infinity in them; or settings below 1.

    Example:
        >>> x = torch.randn(2000, 3)
        >>> found = mutual_information(x, x[:, :1] + torch.randn(2000, 1), steps=100)
        >>> found.value, found.error  # doctest: +SKIP
    """
    if len(x) != len(y) or len(x) < 100:
        raise ValueError(f"mutual_information needs at least 100 pairs, row by row; got {len(x)} and {len(y)} rows")
    if min(steps, batch - 1, partners) < 1 or not lr > 0:
        raise ValueError(
            f"steps and partners must be at least 1, batch at least 2, lr above 0; got {steps}, {partners}, {batch}, "
            f"{lr:g}"
        )
    x, y = x.detach(), y.detach()
    refuse_gaps("mutual_information", x=x, y=y)
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        return _estimated(x, y, estimator, steps, batch, lr, partners, seed)


def _estimated(
    x: Tensor, y: Tensor, estimator: Estimator | None, steps: int, batch: int, lr: float, partners: int, seed: int
) -> InformationEstimate:
    generator = torch.Generator(x.device).manual_seed(seed)
    order = torch.randperm(len(x), generator=generator, device=x.device)
    first, second = len(x) * 6 // 10, len(x) * 8 // 10
    train, choose, read = order[:first], order[first:second], order[second:]
    if estimator is None:
        estimator = MINE(_default_critic(x, y, train, seed))
    model = estimator if isinstance(estimator, nn.Module) else None
    weights = [] if model is None else [p for p in model.parameters() if p.requires_grad]
    if model is None or not weights:
        value, error = _reading(estimator, x[order], y[order], partners)
        return InformationEstimate(value, error, len(x), (), estimator)

    optimizer = torch.optim.Adam(weights, lr=lr)
    best, kept, curve = -math.inf, copy.deepcopy(model.state_dict()), []
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        for step in range(1, steps + 1):
            rows = train[torch.randint(len(train), (batch,), generator=generator, device=x.device)]
            optimizer.zero_grad()
            (-estimator(x[rows], y[rows], generator)).backward()
            optimizer.step()
            if step % max(1, steps // PARTS) == 0:
                with evaluating(model):
                    joint, marginal = _scores(estimator.critic, x[choose], y[choose], partners)
                curve.append(float(estimator.bound(joint, marginal)))
                if curve[-1] > best:
                    best, kept = curve[-1], copy.deepcopy(model.state_dict())
        model.load_state_dict(kept)
        model.eval()
        value, error = _reading(estimator, x[read], y[read], partners)
    finally:
        for module, mode in modes:
            module.training = mode
    return InformationEstimate(value, error, len(read), tuple(curve), estimator)


@torch.no_grad()
def _scores(critic: Critic, x: Tensor, y: Tensor, partners: int, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """Scores of pairs (n,), and of row i of x with rows i + 1, i + 2, ... of y, (partners, n); rows in random order."""
    found = []
    for k in range(min(partners, len(x) - 1) + 1):
        chunks = zip(torch.split(x, chunk), torch.split(y.roll(-k, 0), chunk), strict=True)
        found.append(torch.cat([paired_scores(critic, *pair) for pair in chunks]))
    return found[0], torch.stack(found[1:])


def _reading(estimator: Estimator, x: Tensor, y: Tensor, partners: int) -> tuple[float, float]:
    """The bound and its standard error: the spread of what is left without one block of rows after the other."""
    joint, marginal = _scores(estimator.critic, x, y, partners)
    n, values = len(joint), []
    block = torch.arange(n, device=joint.device) * BLOCKS // n
    partner = torch.stack([block.roll(-k) for k in range(1, len(marginal) + 1)])
    for b in range(BLOCKS):
        without = (block != b) & (partner != b)  # no pair that holds one of its rows
        values.append(estimator.bound(joint[block != b], marginal[without]))
    spread = torch.stack(values).var(correction=0) * (BLOCKS - 1)
    return float(estimator.bound(joint, marginal)), float(spread.sqrt())


class _Standardised(nn.Module):
    """A critic of rows whose coordinates have mean 0 and variance 1 over the training pairs.

    In float64 where the device has it: times and identifiers differ in digits that float32 has not.
    """

    x_mean: Tensor
    x_std: Tensor
    y_mean: Tensor
    y_std: Tensor

    def __init__(self, critic: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.critic, self.dtype = critic, dtype
        for name, rows in (("x", x), ("y", y)):
            std = rows.std(0)
            self.register_buffer(f"{name}_mean", rows.mean(0))
            self.register_buffer(f"{name}_std", std.where(std > 0, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = (x.reshape(len(x), -1).to(self.x_mean) - self.x_mean) / self.x_std
        y = (y.reshape(len(y), -1).to(self.y_mean) - self.y_mean) / self.y_std
        found: Tensor = self.critic(x.to(self.dtype), y.to(self.dtype))
        return found


def _default_critic(x: Tensor, y: Tensor, train: Tensor, seed: int) -> nn.Module:
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    x, y = (rows[train].reshape(len(train), -1).to(wide) for rows in (x, y))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = mlp_critic(x.shape[1], y.shape[1])
    return _Standardised(critic.to(x.device, dtype), x, y, dtype)
