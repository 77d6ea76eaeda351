"""Decoupled weight decay, Loshchilov, Hutter 2019."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core import Method, Recipe, Task
from ...weights.decoupled_weight_decay import DecoupledWeightDecay
from ...weights.norm_penalties import L2
from ..claim import Claim
from ..mutation import Mutation, fixed

SCALES, COUNT, STEPS, LR, DECAY = (1.0, 10.0, 100.0), 4000, 2000, 1e-3, 0.05


class Noise(Task):
    """A loss whose gradient is the noise in the batch."""

    reads = ("x",)
    yields = ("value",)

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {"value": model(batch["x"])[:, 0]}

    def loss(self, out: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        value: Tensor = out["value"]
        return value


def final_weights(method: Method, seed: int) -> Tensor:
    """Weights (scales, count) that start at 1 and see nothing but gradient noise of the sd of their row, under Adam."""
    model = nn.Linear(len(SCALES) * COUNT, 1, bias=False)
    nn.init.ones_(model.weight)
    recipe = Recipe(method, seed=seed).attach(model, Noise())
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    sd = torch.tensor(SCALES).repeat_interleave(COUNT)
    g = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        recipe.step({"x": sd * torch.randn(1, len(sd), generator=g)}, optimizer)
    return model.weight.detach().view(len(SCALES), COUNT).double()


def run(seed: int) -> dict[str, dict[str, float]]:
    """Distance of the mean weight from the closed form, in standard errors of that mean."""
    errors = {}
    for name, method, power in (
        ("decoupled", DecoupledWeightDecay(strength=DECAY), 0),
        ("L2", L2(strength=DECAY / 2), 1),
    ):
        for scale, weights in zip(SCALES, final_weights(method, seed), strict=True):
            expected = (1 - LR * DECAY / scale**power) ** STEPS
            standard_error = float(weights.std()) / math.sqrt(COUNT)
            errors[f"{name}, gradients of sd {scale:g}"] = abs(float(weights.mean()) - expected) / standard_error
    return {"errors": errors}


CLAIM = Claim(
    paper="adamw-decoupled-weight-decay",
    statement="Decoupled decay shrinks every weight by the same factor (1 - lr lambda)^T; the same decay as an L2 "
    "penalty inside Adam is divided by the size s of the weight's gradients, (1 - lr lambda / s)^T.",
    arena=f"closed form; {COUNT} weights each under pure gradient noise of sd 1, 10 and 100; Adam, lr {LR:g}, decay "
    f"{DECAY:g}, {STEPS} steps",
    quantity="distance of the mean weight from the closed form, in its standard errors",
    kind="exact",
    tolerance=4.0,  # of 30 normal variates one exceeds 4 in absolute value with probability 0.002
    run=run,
    mutation=Mutation(
        words="strength 0",
        target="wellposed.weights.decoupled_weight_decay:DecoupledWeightDecay",
        by=fixed(strength=0.0),
    ),
)
