"""Masked diffusion language models, Sahoo and others 2024."""

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion.masked_diffusion import MaskedDiffusion, Schedule, hidden_share
from ..claim import Claim
from ..mutation import Mutation

SYMBOLS, LENGTH, NODES = 3, 4, 24


class Conditionals(nn.Module):
    """The exact conditional laws of a joint law (V, ..., V): ids (B, L), V where hidden, to logits (B, L, V)."""

    def __init__(self, joint: Tensor) -> None:
        super().__init__()
        self.joint = joint

    def forward(self, z: Tensor) -> Tensor:
        """Log-probabilities of each place given those in view."""
        ids = self.joint.shape[0]
        every = torch.tensor(list(product(range(ids), repeat=z.shape[1])))
        states, rows = torch.unique(z, dim=0, return_inverse=True)  # few: at most (V + 1)^L
        fits = ((states[:, None] == every) | (states[:, None] == ids)).all(2).to(self.joint.dtype)
        one = nn.functional.one_hot(every, ids).to(self.joint.dtype)
        return torch.einsum("bn,nlv->blv", fits * self.joint.flatten(), one).log()[rows]


def exact_nelbo(joint: Tensor, schedule: Schedule, model: Tensor | None = None) -> float:
    """The bound of all sequences under ``joint``, in nats, with the conditionals of ``model`` (the same law).

    Every set of hidden places is summed over, time by Gauss-Legendre quadrature. With log-linear times the integrand is
    a polynomial of degree L - 1, with cosine times entire: the nodes leave nothing but rounding.
    """
    symbols, length = joint.shape[0], joint.ndim
    task = MaskedDiffusion(mask_id=symbols, schedule=schedule)
    every = torch.tensor(list(product(range(symbols), repeat=length)))
    masks = torch.tensor(list(product([False, True], repeat=length)))
    places, weights = (torch.tensor(v) / 2 for v in np.polynomial.legendre.leggauss(NODES))
    shape = (NODES, len(every), len(masks))
    hidden = masks.expand(*shape, length)
    times = (places + 0.5)[:, None, None].expand(shape)
    share = hidden_share(times, schedule)
    count = masks.sum(1)
    odds = share**count * (1 - share) ** (length - count) * joint.flatten()[:, None] * weights[:, None, None]
    x = every[:, None].expand(*shape, length)
    y, mask = x.reshape(-1, length), hidden.reshape(-1, length)
    batch = {"x": y.masked_fill(mask, symbols), "y": y, "mask": mask, "t": times.reshape(-1)}
    net = Conditionals(joint if model is None else model)
    rows = task.loss(task.forward(net, batch), batch)
    return float(length * (odds.flatten() * rows).sum())


def square(t: Tensor) -> Tensor:
    """A schedule that starts slowly."""
    return t.square()


def run(seed: int) -> dict[str, dict[str, float]]:
    """|bound - entropy| in nats of a random joint law, under three schedules."""
    g = torch.Generator().manual_seed(seed)
    joint = torch.rand((SYMBOLS,) * LENGTH, generator=g, dtype=torch.float64)
    joint = joint / joint.sum()
    entropy = float(-(joint * joint.log()).sum())
    schedules: dict[str, Schedule] = {"log-linear": "loglinear", "cosine": "cosine", "square": square}
    return {"errors": {name: abs(exact_nelbo(joint, schedule) - entropy) for name, schedule in schedules.items()}}


CLAIM = Claim(
    paper="mdlm",
    statement="With the exact conditional laws as the model, the weighted cross-entropy at hidden places, averaged "
    "over times and hidden places, is the entropy of the sequences, whatever the schedule.",
    arena=f"random joint laws of {LENGTH} tokens with {SYMBOLS} symbols; all sequences and all sets of hidden places "
    f"summed over, time by {NODES} Gauss-Legendre nodes; log-linear, cosine and square schedules; float64",
    quantity="|bound - entropy| in nats",
    kind="exact",
    # as many terms as are summed, each rounded, at most the entropy of the uniform law together
    tolerance=NODES * 2**LENGTH * SYMBOLS**LENGTH * 2**-53 * LENGTH * math.log(SYMBOLS),
    run=run,
    mutation=Mutation(
        words="hidden places weigh the same at all times",
        target="wellposed.diffusion.masked_diffusion:hiding_rate",
        by=lambda rate: lambda t, schedule: torch.ones_like(t),
    ),
)
