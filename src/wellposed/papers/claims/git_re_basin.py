"""Git Re-Basin, Ainsworth, Hayase, Srinivasa 2023."""

import torch
import torch.nn.functional as F
from torch import nn

from ...weights.git_re_basin import PermutationSpec, interpolated, loss_barrier, permuted, weight_matching
from ...workbench.metrics import accuracy
from ..arenas import digits, fit, mlp
from ..claim import Claim
from ..mutation import Mutation

WIDTHS, EPOCHS = (64, 128, 128, 10), 30


def run(seed: int) -> dict[str, dict[str, float]]:
    """Barrier of the test loss (nats) between two nets of other starts and orders, and accuracy (points) midway."""
    sample = digits(seed, 1200)
    nets = [fit(mlp(s, *WIDTHS), sample, seed=s, epochs=EPOCHS, lr=1e-3) for s in (seed, seed + 10_000)]
    a, b = (net.state_dict() for net in nets)
    spec = PermutationSpec.of(nets[0], sample.x[:1])

    def loss(model: nn.Module) -> torch.Tensor:
        return F.cross_entropy(model(sample.x_test), sample.y_test)

    found = {}
    for arm, other in (("with", permuted(spec, weight_matching(spec, a, b, seed=seed), b)), ("without", b)):
        barrier, _ = loss_barrier(nets[0], a, other, loss)
        middle = mlp(seed, *WIDTHS)
        middle.load_state_dict(interpolated(a, other, 0.5))
        with torch.no_grad():
            found[arm] = {"barrier": barrier, "accuracy": accuracy(middle(sample.x_test), sample.y_test)}
    return found


CLAIM = Claim(
    paper="git-re-basin",
    statement="Between two nets trained apart, the barrier of the test loss on the straight line is lower after the "
    "hidden units of one are permuted by weight matching than before.",
    arena=f"digits, 1200 training scans; two MLPs {'-'.join(map(str, WIDTHS))} of different starts and orders, AdamW "
    f"1e-3, batch 32, {EPOCHS} epochs; 11 points on the line",
    quantity="barrier",
    direction="lower",
    margin=0.15,  # a quarter of the 0.57 nats seen on other seeds
    run=run,
    mutation=Mutation(
        words="the assignment solved for the smallest agreement",
        target="wellposed.weights.git_re_basin:_assign",
        by=lambda assign: lambda gains: assign(-gains),
    ),
)
