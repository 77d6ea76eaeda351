"""I-Con, Alshammari et al. 2025."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...selfsup import i_con as ic
from ...tasks import nt_xent
from ..claim import Claim
from ..mutation import Mutation, nothing


def gap(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return float((a - b).abs().max())


def identities(seed: int) -> dict[str, dict[str, float]]:
    """The general loss against each loss it is said to contain, and against the slopes of SNE and t-SNE."""
    g = torch.Generator().manual_seed(seed)
    z1, z2, x = torch.randn(3, 20, 5, generator=g, dtype=torch.float64)
    y = torch.arange(20) % 4  # four others of each label: 1/4 is exact in any precision

    labels = ic.label_neighbours(y).double()
    cosines = F.normalize(z1) @ F.normalize(z1).T / 0.3
    others = ~torch.eye(20, dtype=torch.bool)
    log_chance = cosines - (cosines.exp() * others).sum(1, keepdim=True).log()
    same = (y[:, None] == y) & others
    contrast = -(log_chance * same).sum(1) / same.sum(1)
    entropy = -torch.special.xlogy(labels, labels).sum(1)

    kernel = torch.exp(-(x[:, None] - x).square().sum(-1)) * others
    rows, pairs = kernel / kernel.sum(1, keepdim=True), kernel / kernel.sum()
    low = z2[:, :2].clone().requires_grad_()
    step = (low[:, None] - low).detach()
    near = step.square().sum(-1)
    gauss = torch.exp(-near / 2) * others
    off = rows - gauss / gauss.sum(1, keepdim=True)
    student = others / (1 + near)
    pull = (pairs - student / student.sum()) / (1 + near)

    def slope(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, low)[0]

    found = {
        "InfoNCE": gap(ic.icon_views(z1, z2, 0.3), nt_xent(z1, z2, 0.3)),
        "supervised contrast": gap(ic.icon_loss(labels, ic.cosine_neighbours(z1, 0.3)) + entropy, contrast),
        "cross-entropy": gap(
            ic.icon_loss(F.one_hot(y, 5).double(), z1.log_softmax(1)), F.cross_entropy(z1, y, reduction="none")
        ),
        "SNE, slope": gap(
            slope(ic.icon_loss(rows, ic.gaussian_neighbours(low)).sum()), ((off + off.T)[..., None] * step).sum(1)
        ),
        "t-SNE, slope": gap(
            slope(ic.icon_loss(pairs, ic.student_neighbours(low, joint=True)).sum()),
            4 * (pull[..., None] * step).sum(1),
        ),
        "certain clusters": gap(
            ic.cluster_neighbours(F.one_hot(y, 4).double()).exp(),
            (y[:, None] == y).double() / 5,
        ),
    }
    return {"errors": found}


CLAIM = Claim(
    paper="i-con",
    kind="exact",
    statement="One divergence between neighbour distributions contains InfoNCE, supervised contrast, cross-entropy, "
    "SNE and (as one distribution over all pairs) t-SNE: equal values, or equal slopes, up to a constant entropy.",
    arena="20 Gaussian rows in 5 dimensions, 4 labels, double precision; each loss by its own published formula",
    quantity="absolute error",
    tolerance=1e-12,  # sums of 20 terms of order 1 to 10 at 2e-16 each
    run=identities,
    mutation=Mutation("each sample among its own neighbours", "wellposed.selfsup.i_con:_without_self", nothing),
)
