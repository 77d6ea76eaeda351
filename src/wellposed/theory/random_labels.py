"""Randomisation tests: what a net and its training fit although there is nothing to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Method, Recipe, implements
from ..core.modes import evaluating
from ..tasks import Classify
from ..workbench.metrics import accuracy

__all__ = ["FiniteSampleInterpolator", "corrupt_inputs", "corrupt_labels", "epochs_to_fit", "randomization_test"]

Inputs = Literal["shuffled", "random", "gaussian"]
Train = Callable[[Tensor, Tensor], nn.Module]


# ---- corruptions
def corrupt_labels(y: Tensor, share: float, classes: int, generator: torch.Generator | None = None) -> Tensor:
    """Class ids (N,), each replaced with probability ``share`` by one drawn from all classes, the right one included.

    Raises:
        ValueError: if the share is no probability.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be 0 to 1, got {share:g}")
    drawn = torch.randint(classes, y.shape, generator=generator, device=y.device, dtype=y.dtype)
    return torch.where(torch.rand(y.shape, generator=generator, device=y.device) < share, drawn, y)


def corrupt_inputs(x: Tensor, how: Inputs, generator: torch.Generator | None = None) -> Tensor:
    """Inputs (N, D), or (N, channels, ...) whose channels stay together, without their meaning.

    Args:
        how: ``"shuffled"``: places permuted, alike in all samples; ``"random"``: in each sample its own way;
            ``"gaussian"``: noise with the mean and standard deviation of ``x``.

    Raises:
        ValueError: for an unknown ``how``.
    """
    if how == "gaussian":
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return noise * x.std() + x.mean()
    if how not in ("shuffled", "random"):
        raise ValueError(f"how must be 'shuffled', 'random' or 'gaussian', got {how!r}")
    flat = x.flatten(2) if x.ndim > 2 else x[:, None]
    orders = len(x) if how == "random" else 1
    keys = torch.rand(orders, 1, flat.shape[2], generator=generator, device=x.device)
    return flat.gather(2, keys.argsort(-1).expand(flat.shape)).view(x.shape)


# ---- the test
def epochs_to_fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    *methods: Method,
    classes: int,
    batch: int = 32,
    limit: int = 1000,
    seed: int = 0,
) -> int | None:
    """Train in place until every training sample is classified as labelled; None if ``limit`` epochs are not enough.

    Args:
        x, y: training data (N, ...) and class ids (N,).
        methods: regularisers that act meanwhile.
        seed: of the order of batches and the methods' noise.
    """
    recipe = Recipe(*methods, seed=seed).attach(model, Classify(classes=classes), steps=limit * -(-len(x) // batch))
    order = torch.Generator().manual_seed(seed)
    try:
        for epoch in range(1, limit + 1):
            for rows in torch.split(torch.randperm(len(x), generator=order).to(x.device), batch):
                recipe.step({"x": x[rows], "y": y[rows], "index": rows}, optimizer)
            if _accuracy(model, x, y) == 100:
                return epoch
        return None
    finally:
        recipe.finish()


@implements("random-labels-memorization")
def randomization_test(
    train: Train,
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    classes: int,
    share: float = 0.5,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    r"""Randomisation test: what your model and your training fit when labels or inputs mean nothing.

    Computes:
        Trains six times, on the data as they are, with some and with all labels drawn at random, with places permuted
        alike in all samples or in each its own way, and on Gaussian noise, and compares accuracy on the training data
        with that on true test labels. ``FiniteSampleInterpolator`` shows that 2 n + d weights suffice for any labels of
        n points in d dimensions.

    Formula:
        \tilde y_i = (1 - m_i) \, y_i + m_i u_i, \quad m_i \sim \mathrm{Bernoulli}(p), \quad u_i \sim \mathrm{Uniform}
        c(x) = \sum_{j=1}^n w_j \max(a^\top x - b_j, 0)

    Helps:
        Judging explanations of generalisation, and a regulariser: where random labels are fitted to 100 %, neither the
        size of the model nor the regulariser is what makes it generalise.

    Avoid:
        Reading more than capacity from it: a net that can memorise need not do so on clean data.

    Defaults:
        Half of the labels in the partial corruption.

    Cost:
        Six trainings. On 300 digits random labels took about three times the epochs of true ones, weight decay and
        dropout up to nine times.

    Reference:
        Zhang, Bengio, Hardt, Recht, Vinyals 2017, Understanding deep learning requires rethinking generalization,
        arXiv 1611.03530, sections 2 and 4.

    Args:
        train: from inputs and labels to a trained classifier that returns logits (B, C): your own training, with a new
            model each time.
        x, y: training inputs (N, ...) and class ids (N,).
        x_test, y_test: test data; inputs are corrupted as those of training, labels stay.
        classes: number of classes.
        share: of random labels in the partial corruption.
        seed: of the corruptions.

    Returns:
        by corruption: ``train`` and ``test`` accuracy in points.

    Raises:
        ValueError: if inputs and labels are not equally many.
    """
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise ValueError(
            f"as many labels as inputs are needed, got {len(y)} for {len(x)} and {len(y_test)} for {len(x_test)}"
        )

    def labels(p: float) -> Tensor:
        return corrupt_labels(y, p, classes, torch.Generator(y.device).manual_seed(seed))

    def both(how: Inputs) -> tuple[Tensor, Tensor]:
        changed = corrupt_inputs(torch.cat([x, x_test]), how, torch.Generator(x.device).manual_seed(seed))
        return changed[: len(x)], changed[len(x) :]

    cases: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor]]] = {
        "true labels": lambda: (x, x_test, y),
        "partly random labels": lambda: (x, x_test, labels(share)),
        "random labels": lambda: (x, x_test, labels(1.0)),
        "shuffled pixels": lambda: (*both("shuffled"), y),
        "random pixels": lambda: (*both("random"), y),
        "gaussian inputs": lambda: (*both("gaussian"), y),
    }
    found = {}
    for name, case in cases.items():
        seen, unseen, given = case()
        model = train(seen, given)
        found[name] = {"train": _accuracy(model, seen, given), "test": _accuracy(model, unseen, y_test)}
    return found


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with evaluating(model):
        return accuracy(torch.cat([model(part) for part in torch.split(x, 1024)]), y)


# ---- the theorem
class FiniteSampleInterpolator(nn.Module):
    """A two-layer ReLU net with 2 n + d weights that maps n different points in d dimensions to any n targets.

    All hidden units look along one direction ``a`` (d weights) and start one after another: unit j bends the function
    right before the j-th point, so that the output weights solve a triangular system (theorem 1 of the paper). Float64
    inside: the weights grow like the inverse of the smallest gap between projections.

    Args:
        x: points (n, d).
        y: targets (n,).
        generator: of the direction, which is random.

    Raises:
        ValueError: if shapes do not fit, or two points coincide along the direction.
    """

    def __init__(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if x.ndim != 2 or y.shape != x.shape[:1]:
            raise ValueError(f"points (n, d) and targets (n,) are needed, got {tuple(x.shape)} and {tuple(y.shape)}")
        x, y = x.detach().double(), y.detach().double()
        direction = torch.randn(x.shape[1], generator=generator, device=x.device, dtype=torch.float64)
        z, order = (x @ direction).sort()
        if not (z.diff() > 0).all():
            raise ValueError("two points have the same projection: equal points cannot have targets of their own")
        starts = torch.cat([z[:1] - 1, (z[1:] + z[:-1]) / 2])
        hidden = (z[:, None] - starts).clamp_min(0)  # lower triangular, for starts[j] lies between z[j - 1] and z[j]
        weights = torch.linalg.solve_triangular(hidden, y[order, None], upper=False)[:, 0]
        self.direction, self.starts, self.weights = map(nn.Parameter, (direction, starts, weights))

    def forward(self, x: Tensor) -> Tensor:
        """(B, d) -> (B,), float64."""
        return (x.double() @ self.direction - self.starts[:, None]).clamp_min(0).T @ self.weights
