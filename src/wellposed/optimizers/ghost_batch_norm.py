"""Large batches that generalise like small ones: ghost batches, learning rates, and as many updates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, RecipeError, Task, implements, knob
from ..core.norms import global_norm

__all__ = [
    "GhostBatchNorm", "GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d", "log_fit", "same_updates", "scale_lr",
    "weight_distance",
]  # fmt: skip

Rule = Literal["sqrt", "linear"]


# ---- normalisation
class _Ghost(nn.modules.batchnorm._BatchNorm):
    """The forward pass that the three modules share."""

    ghost_size: int

    def forward(self, input: Tensor) -> Tensor:
        count = max(1, len(input) // self.ghost_size)
        if not self.training or count == 1:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        size, longer = divmod(len(input), count)
        cut = longer * (size + 1)  # so many ghosts are one sample larger where the batch does not divide evenly
        parts = [(input[:cut], longer), (input[cut:], count - longer)]
        found = [self._normalise(x, n) for x, n in parts if n]
        if self.track_running_stats and self.running_mean is not None:
            self._record(torch.cat([mean for _, mean, _ in found]), torch.cat([var for _, _, var in found]))
        return torch.cat([out for out, _, _ in found]) if len(found) > 1 else found[0][0]

    def _normalise(self, x: Tensor, ghosts: int) -> tuple[Tensor, Tensor, Tensor]:
        """Equal ghosts as channels of one fused call: outputs, and each ghost's mean and variance (ghosts, C)."""
        channels = x.shape[1]
        apart = x.reshape(ghosts, -1, *x.shape[1:]).transpose(0, 1)
        stacked = apart.reshape(len(x) // ghosts, ghosts * channels, *x.shape[2:])
        wide = torch.promote_types(x.dtype, torch.float32) if self.weight is None else self.weight.dtype
        mean = torch.zeros(ghosts * channels, dtype=wide, device=x.device)
        var = torch.ones_like(mean)
        weight = None if self.weight is None else self.weight.repeat(ghosts)
        bias = None if self.bias is None else self.bias.repeat(ghosts)
        out = F.batch_norm(stacked, mean, var, weight, bias, True, 1.0, self.eps)  # momentum 1: the batch's own
        out = out.view(apart.shape).transpose(0, 1).reshape(x.shape)
        return out, mean.view(ghosts, channels), var.view(ghosts, channels)

    @torch.no_grad()
    def _record(self, means: Tensor, variances: Tensor) -> None:
        """Running statistics as if the ghosts had come one after another; without momentum, averages over updates."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        for running, found in ((self.running_mean, means), (self.running_var, variances)):
            if self.momentum is None:
                assert self.num_batches_tracked is not None
                running.add_((found.mean(0) - running) / self.num_batches_tracked)
            else:
                kept = 1 - self.momentum
                ages = torch.arange(len(found) - 1, -1, -1, device=found.device, dtype=found.dtype)
                running.mul_(kept ** len(found)).add_((self.momentum * kept**ages) @ found)


class GhostBatchNorm1d(_Ghost, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose training batches are normalised in parts of ``ghost_size``; the rest as there."""

    def __init__(self, num_features: int, ghost_size: int = 32, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)  # type: ignore[arg-type]
        self.ghost_size = ghost_size


class GhostBatchNorm2d(_Ghost, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose training batches are normalised in parts of ``ghost_size``; the rest as there."""

    def __init__(self, num_features: int, ghost_size: int = 32, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)  # type: ignore[arg-type]
        self.ghost_size = ghost_size


class GhostBatchNorm3d(_Ghost, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` whose training batches are normalised in parts of ``ghost_size``; the rest as there."""

    def __init__(self, num_features: int, ghost_size: int = 32, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)  # type: ignore[arg-type]
        self.ghost_size = ghost_size


GHOSTS: dict[type, type[_Ghost]] = {
    nn.BatchNorm1d: GhostBatchNorm1d, nn.BatchNorm2d: GhostBatchNorm2d, nn.BatchNorm3d: GhostBatchNorm3d,
}  # fmt: skip


class GhostBatchNorm(Method, paper="ghost-batch-norm"):
    r"""Ghost batch normalization: a large batch is normalised in small parts, as small batches would be.

    Computes:
        In training each BatchNorm layer takes mean and variance over parts of ``ghost_size`` samples, and its running
        statistics see the parts one after another. Evaluation is that of BatchNorm. A batch that does not divide evenly
        has fewer, slightly larger parts; one shorter than two parts is normalised as a whole.

    Formula:
        \hat{x} = \gamma \frac{x - \mu_l}{\sqrt{\sigma_l^2 + \epsilon}} + \beta \quad (x \text{ in ghost } l)
        \mu_{\mathrm{run}} \leftarrow (1 - \eta)^n \mu_{\mathrm{run}} + \sum_{l=1}^{n} (1 - \eta)^{n - l} \eta \mu_l

    Helps:
        The gap between large and small batches has three remedies in the paper: this one, learning rates that grow with
        the batch (``scale_lr``), and as many updates (``same_updates``). Together they closed it on digits.

    Avoid:
        Alone: ghosts of 32 in a batch of 512 were worth 0.8 points in six short runs, and BatchNorm whose running
        statistics move as fast got 0.6 of them. Where labels are wrong, large batches with few updates were better by 6
        to 8 points, because they memorise less. Running statistics move n times as far an update: lower the layers'
        momentum if evaluation is noisy.

    Defaults:
        ghost_size 32; the paper's is the small batch that generalises well (128 for its image nets).

    Cost:
        One pass; a copy of each normalised activation.

    Reference:
        Hoffer, Hubara, Soudry 2017, Train longer, generalize better: closing the generalization gap in large batch
        training of neural networks, arXiv 1705.08741, Algorithm 1. There the first ghost weighs most in the running
        statistics; here the last, as in all implementations that run ghosts through one layer in turn.

    Args:
        ghost_size: samples that are normalised together.
    """

    null = {"ghost_size": 10**9}
    exact = False  # a microbatch is cut into ghosts of its own
    example = {"ghost_size": 3, "model": "normed"}

    ghost_size: int = knob(32, low=2, grid=(16, 32, 64))

    def setup(self, model: nn.Module, task: Task) -> None:
        self.changed: list[str] = []
        if not any(type(m) in GHOSTS for m in model.modules()):
            raise RecipeError("GhostBatchNorm acts on nn.BatchNorm layers, and the model has none")
        for name, layer in model.named_modules():
            if type(layer) in GHOSTS:
                layer.__class__ = GHOSTS[type(layer)]
                layer.ghost_size = self.ghost_size
                self.changed.append(name)

    def teardown(self, model: nn.Module) -> None:
        for name in getattr(self, "changed", ()):
            layer = model.get_submodule(name)
            del layer.ghost_size
            layer.__class__ = next(plain for plain, ghost in GHOSTS.items() if type(layer) is ghost)
        self.changed = []


# ---- rates and lengths of training
def scale_lr(lr: float, batch: int, new_batch: int, rule: Rule = "sqrt") -> float:
    """The learning rate for another batch size.

    Args:
        lr: rate that suits ``batch``.
        batch, new_batch: samples per update.
        rule: "sqrt" keeps the covariance of SGD's steps, "linear" the mean progress of an epoch.

    Returns:
        lr sqrt(new_batch / batch), or lr new_batch / batch.

    Raises:
        ValueError: for another rule, or numbers that are not positive.
    """
    if rule not in get_args(Rule) or min(lr, batch, new_batch) <= 0:
        raise ValueError(
            f"scale_lr needs positive numbers and a rule 'sqrt' or 'linear', got {lr:g}, {batch}, {new_batch}, {rule!r}"
        )
    ratio = new_batch / batch
    return lr * (math.sqrt(ratio) if rule == "sqrt" else ratio)


@implements("ghost-batch-norm")
def same_updates(epochs: float, batch: int, new_batch: int) -> int:
    r"""Regime adaptation: epochs after which a larger batch has had as many updates as a smaller one.

    Computes:
        epochs new_batch / batch, rounded up. Every milestone of a learning-rate schedule is stretched by the same
        factor.

    Formula:
        E' = \left\lceil E \, \frac{B'}{B} \right\rceil

    Helps:
        Generalisation of large batches: it is the number of updates that is missing, not the noise of small batches.

    Avoid:
        Where labels are wrong: more updates memorise more of them.

    Defaults:
        None.

    Cost:
        new_batch / batch times as many samples are seen.

    Reference:
        Hoffer, Hubara, Soudry 2017, Train longer, generalize better, arXiv 1705.08741, Section 5.

    Args:
        epochs: that suit ``batch``.
        batch, new_batch: samples per update.

    Returns:
        a whole number of epochs.

    Raises:
        ValueError: for numbers that are not positive.
    """
    if min(epochs, batch, new_batch) <= 0:
        raise ValueError(f"same_updates needs positive numbers, got {epochs:g}, {batch} and {new_batch}")
    return math.ceil(epochs * new_batch / batch)


# ---- diffusion
def weight_distance(params: Iterable[Tensor], initial: Iterable[Tensor]) -> Tensor:
    """||w - w_0|| over all tensors as one vector, a scalar; in the first phase of training it grows like log t."""
    return global_norm(torch._foreach_sub([p.detach() for p in params], list(initial)))


def log_fit(times: Sequence[float], distances: Sequence[float]) -> tuple[float, float]:
    """Least-squares fit of distance = a + slope log t.

    Args:
        times: t > 0, at least three different ones.
        distances: of the weights from their start, say.

    Returns:
        slope, and the share R^2 of the variance that it explains.

    Raises:
        ValueError: for fewer times.
    """
    if len(set(times)) < 3 or min(times) <= 0:
        raise ValueError(f"log_fit needs at least three different times above 0, got {list(times)[:5]}")
    x, y = torch.tensor(times, dtype=torch.float64).log(), torch.tensor(distances, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    residual = (y - slope * x).square().sum()
    return float(slope), float(1 - residual / y.square().sum())
