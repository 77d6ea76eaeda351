"""Two views: representations that agree about one sample and tell samples apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.parallel import gather, rank
from ..core.task import Batch, Outputs, Task
from .classify import logits_of


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross-entropy: find the other view among all other views.

    Under data parallelism the views of all ranks are candidates, so that the ranks compute the loss of one large batch;
    they must hold equal numbers of samples.

    Args:
        z1, z2: representations of the two views, (B, D).
        temperature: of the softmax over cosine similarities; above 0.

    Returns:
        mean over a sample's two views, shape (B,); Chen et al. 2020 (SimCLR, arXiv 2002.05709), Eq. 1.
    """
    z1, z2 = F.normalize(z1, dim=-1), F.normalize(z2, dim=-1)
    all1, all2 = gather(z1), gather(z2)
    own = torch.arange(len(z1), device=z1.device) + rank() * len(z1)  # columns of this rank's samples
    itself = F.one_hot(own, len(all1)).bool()

    def side(z: Tensor, same: Tensor, other: Tensor) -> Tensor:
        among = (z @ same.T).masked_fill(itself, -torch.inf)
        return F.cross_entropy(torch.cat([z @ other.T, among], 1) / temperature, own, reduction="none")

    return (side(z1, all1, all2) + side(z2, all2, all1)) / 2


class TwoViews(Task):
    """A criterion on the representations of two views of each sample.

    ``batch["x1"]`` and ``batch["x2"]`` (B, ...) are the views. Both go through the model in one pass, so batch
    normalisation and DDP see one batch of 2B; the representations (2B, D) are cut into z1 and z2.

    The default criterion contrasts each sample with the others of its batch: several microbatches give the mean of
    their losses, not the loss of the large batch (whose samples would have more negatives). Several ranks do give it.

    Args:
        criterion: ``(z1, z2) -> (B,)`` or a scalar; ``functools.partial(nt_xent, temperature=0.1)``, say.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> model = torch.nn.Linear(4, 3)
        >>> recipe = Recipe().attach(model, TwoViews())
        >>> x = torch.randn(8, 4)
        >>> batch = {"x1": x + 0.1 * torch.randn(8, 4), "x2": x + 0.1 * torch.randn(8, 4)}
        >>> sorted(recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1)))
        ['task', 'total']
    """

    reads = ("x1", "x2")
    yields = ("z1", "z2")

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor] = nt_xent) -> None:
        self.criterion = criterion

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        z1, z2 = logits_of(model(torch.cat([batch["x1"], batch["x2"]]))).chunk(2)
        return {"z1": z1, "z2": z2}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        rows = self.criterion(out["z1"], out["z2"])
        return rows if rows.ndim else rows.expand(len(out["z1"]))

    def __repr__(self) -> str:
        return f"TwoViews({getattr(self.criterion, '__name__', repr(self.criterion))})"
