"""Filter-normalised loss landscapes, Li et al. 2018."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...theory.loss_landscape import Unit, filter_normalized_direction, loss_surface
from ..arenas import Sample, digits, fit, mlp
from ..claim import Claim, Curve
from ..mutation import Mutation, fixed

FACTOR = 10.0
POSITIONS = torch.linspace(-1, 1, 21)


def rescaled(net: nn.Sequential) -> nn.Sequential:
    """The same function with other weights: the first layer times ``FACTOR``, the second divided by it."""
    other = copy.deepcopy(net)
    first, second = (layer for layer in other if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight.mul_(FACTOR)
        first.bias.mul_(FACTOR)
        second.weight.div_(FACTOR)
    return other


def losses(net: nn.Module, sample: Sample, seed: int, by: Unit) -> Tensor:
    """Training loss along one direction, the same draw for every net."""
    direction = filter_normalized_direction(net, torch.Generator().manual_seed(seed), by)
    return loss_surface(net, lambda: F.cross_entropy(net(sample.x.double()), sample.y), direction, rows=POSITIONS)


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """A trained net and its rescaled twin, along the normalised and the raw direction."""
    sample = digits(seed, 300)
    net = mlp(seed, 64, 64, 10)
    fit(net, sample, seed=seed, epochs=10, lr=2e-3)
    net.double()
    kinds: dict[str, Unit] = {"normalised": "filter", "raw": "none"}
    curve = {"position": POSITIONS.tolist()}
    for words, by in kinds.items():
        curve[words] = losses(net, sample, seed, by).tolist()
        curve[f"{words}, rescaled net"] = losses(rescaled(net), sample, seed, by).tolist()
    return {"curve": curve}


def change(curve: Curve, words: str) -> float:
    """Mean absolute difference between the curves of the two nets, over the mean of both."""
    a, b = (torch.tensor(curve[name]) for name in (words, f"{words}, rescaled net"))
    return float((a - b).abs().mean() / ((a + b) / 2).mean())


CLAIM = Claim(
    paper="loss-landscape-filter-norm",
    statement="Filter normalisation makes loss curves of nets comparable: two nets that compute the same with weights "
    "of other scales have the same curve, but different curves along the raw direction.",
    arena="digits, 300 training scans; MLP 64-64-10, AdamW 2e-3, batch 32, 10 epochs; its first layer times 10 and the "
    "second divided by 10; 21 points on [-1, 1], float64",
    quantity="change of the raw curve under rescaling minus that of the normalised curve, over the mean loss",
    kind="curve",
    gain=lambda curve: change(curve, "raw") - change(curve, "normalised"),
    margin=0.3,
    run=run,
    mutation=Mutation(
        words="directions left as they were drawn",
        target="wellposed.theory.loss_landscape:filter_normalized_direction",
        by=fixed(by="none"),
    ),
)
