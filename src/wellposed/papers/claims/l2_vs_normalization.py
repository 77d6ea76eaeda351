"""L2 under normalisation, van Laarhoven 2017."""

import copy
from typing import Any

import torch
from torch import nn

from ...core import Recipe
from ...tasks import Classify
from ...weights.scale_invariance import UnitWeights, effective_rates
from ..arenas import digits
from ..claim import Claim
from ..mutation import Mutation, nothing

LR, DECAY, STEPS, BATCH = 0.5, 0.01, 300, 50


def net(seed: int) -> nn.Sequential:
    """An MLP in float64 whose hidden layers meet BatchNorm with next to no eps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Linear(64, 64), nn.BatchNorm1d(64, eps=1e-300), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(64, 10)).double()


def optimizer_for(model: nn.Sequential, decay: float) -> torch.optim.SGD:
    """SGD with a group for each hidden weight, where L2 acts, and one for the rest."""
    hidden = [model.get_parameter("0.weight"), model.get_parameter("3.weight")]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    groups: list[dict[str, Any]] = [{"params": [h], "weight_decay": decay} for h in hidden]
    return torch.optim.SGD([*groups, {"params": rest}], lr=LR)


def run(seed: int) -> dict[str, dict[str, float]]:
    """SGD with L2 beside unit weights, no L2, and the rate that the lengths of the former imply."""
    sample = digits(seed, 1000, wrong=0.4)
    one, other = net(seed), net(seed)
    task = Classify(classes=10)
    free = Recipe(seed=seed).attach(one, task)
    unit = Recipe(UnitWeights(), seed=seed).attach(other, task)
    with_l2, without = optimizer_for(one, DECAY), optimizer_for(other, 0.0)
    g = torch.Generator().manual_seed(seed)
    first = {"x": sample.x[:BATCH].double(), "y": sample.y[:BATCH]}
    unit.step(first, torch.optim.SGD(other.parameters(), lr=0.0))  # to unit length, no more
    worst = 0.0
    for _ in range(STEPS):
        rows = torch.randint(len(sample.x), (BATCH,), generator=g)
        batch = {"x": sample.x[rows].double(), "y": sample.y[rows]}
        hidden = {n: one.get_parameter(n) for n in ("0.weight", "3.weight")}
        for group, rate in zip(without.param_groups, effective_rates(hidden, LR, DECAY).values(), strict=False):
            group["lr"] = float(rate)
        losses = [free.step(batch, with_l2)["task"], unit.step(batch, without)["task"]]
        worst = max(worst, abs(float(losses[0] - losses[1])))
    with torch.no_grad():
        logits = [copy.deepcopy(m).train()(sample.x_test.double()) for m in (one, other)]
    return {"errors": {"loss": worst, "final logits": float((logits[0] - logits[1]).abs().max())}}


CLAIM = Claim(
    paper="l2-vs-normalization",
    statement="On weights before BatchNorm an L2 penalty is nothing but a schedule of the learning rate: unit weights "
    "without L2, at the rate lr / ((1 - lr lambda) ||w||^2), train to the same function.",
    arena=f"digits, 1000 training scans with 40 % wrong labels; MLP 64-64-64-10 with BatchNorm in float64; SGD {LR:g}, "
    f"L2 {DECAY:g} on the hidden weights, batch {BATCH}, {STEPS} steps",
    quantity="difference of losses and logits",
    kind="exact",
    tolerance=1e-9,  # rounding of 1e-16 a step, amplified by training
    run=run,
    mutation=Mutation(
        words="weights are left as long as they are",
        target="wellposed.weights.scale_invariance:UnitWeights.update",
        by=nothing,
    ),
)
