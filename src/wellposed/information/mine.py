"""MINE: mutual information as what a trained critic can tell of pairs."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core import implements
from ..parts.critics import Critic, told_apart
from ..parts.information_bounds import donsker_varadhan, log_mean_exp, nwj

__all__ = ["MINE"]

Form = Literal["dv", "f"]


@implements("mine")
class MINE(nn.Module):
    r"""MINE: a lower bound on mutual information, whose gradient is freed from the bias of small batches.

    Computes:
        The Donsker-Varadhan bound of a critic T over a batch, pairs against shuffled pairs. Its gradient divides by a
        running average of the batches' mean e^T in place of the batch's own, which would be biased; the value is the
        bound itself. Ascend it, in the critic to measure and in a network that makes x or y to inform; descend it in
        that network, while the critic ascends, to compress.

    Formula:
        I(X; Y) \ge \mathbb{E}_{p(x, y)} T - \log \mathbb{E}_{p(x) p(y)} e^{T}
        g = \mathbb{E} \nabla T - \frac{\mathbb{E} [ e^{T} \nabla T ]}{m} , \qquad
        m \leftarrow (1 - r) m + r \, \mathbb{E} e^{T}

    Helps:
        Dependence between high-dimensional variables of any kind, where bins and neighbours fail; information as a
        term of training.

    Avoid:
        Above some five nats: the estimate then hangs on a few rare pairs, its variance grows at least as e^I, and
        `SMILE` is steadier. Reading the value of training batches: read held-out pairs, as `mutual_information` does.
        Expecting better estimates of the average than of the biased gradient: of batches of 8 to 64 none was sure.

    Defaults:
        rate 0.01. Critics are yours: ``mlp_critic`` of ``wellposed.parts.critics`` has two layers of 64.

    Cost:
        A pass of the critic over twice the batch.

    Reference:
        Belghazi et al. 2018, MINE: Mutual Information Neural Estimation, arXiv 1801.04062, Eqs. 5 and 10 and section
        3.2; form "f" is its f-divergence variant, which needs no average. Partners are drawn from the same batch, never
        a row's own. Not here: its clipping of gradients against a GAN's.

    Args:
        critic: ``critic(x, y)`` -> one score a pair, (n,) or (n, 1); a module, whose parameters become this one's, or a
            function.
        rate: r, in (0, 1]; 1 is the biased gradient.
        form: ``"dv"``, or ``"f"`` for the looser bound E T - E e^(T - 1), unbiased by itself.
    """

    log_mean: Tensor

    def __init__(self, critic: Critic, rate: float = 0.01, form: Form = "dv") -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise ValueError(f"MINE: rate must be above 0 and at most 1, got {rate:g}")
        if form not in get_args(Form):
            raise ValueError(f"MINE: form must be one of {', '.join(get_args(Form))}, got {form!r}")
        self.critic, self.rate, self.form = critic, rate, form
        first = next(self.parameters(), torch.empty(0))
        wide = torch.promote_types(first.dtype, torch.float32)  # as the scores are
        self.register_buffer("log_mean", torch.tensor(math.nan, dtype=wide, device=first.device))  # no batch seen

    def forward(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The bound of a batch, a scalar to ascend.

        In training mode the running average moves.

        Args:
            x, y: pairs, row by row, whatever the critic takes; at least 2.
            generator: of the shuffling.
        """
        joint, marginal = told_apart(self.critic, x, y, generator)
        value = self.bound(joint, marginal)
        if self.form == "f" or not self.training:
            return value
        log_now = log_mean_exp(marginal)
        now, before = log_now.detach(), self.log_mean.to(log_now)
        if self.rate < 1:
            moved = torch.logaddexp(before + math.log1p(-self.rate), now + math.log(self.rate))
            self.log_mean = moved.where(~before.isnan(), now)
        else:
            self.log_mean = now
        surrogate = joint.mean() - (log_now - self.log_mean).exp()
        return value.detach() + (surrogate - surrogate.detach())

    def bound(self, joint: Tensor, marginal: Tensor) -> Tensor:
        """The bound from scores: of pairs (n,), and of pairs that do not belong together, any shape."""
        return (donsker_varadhan if self.form == "dv" else nwj)(joint, marginal)

    def extra_repr(self) -> str:
        """Its settings."""
        return f"rate={self.rate:g}, form={self.form!r}"
