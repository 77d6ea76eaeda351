"""Neural collapse: features gather at their class's mean, and the means stand as far apart as they can."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ..tasks.targets import is_class_ids, one_hot

__all__ = ["NeuralCollapse", "neural_collapse_metrics", "simplex_etf", "smallest_angles", "within_class_scatter"]


def within_class_scatter(features: Tensor, y: Tensor, means: Tensor) -> Tensor:
    """Squared distance of features from their class's mean, every class counting the same.

    Args:
        features: (B, D).
        y: class ids (B,) or distributions (B, C), whose shares count as parts of samples.
        means: (C, D).

    Returns:
        (1/C) sum_k (1/n_k) sum_{i of k} ||h_i - mu_k||^2, a scalar; a class that is absent from the batch adds 0.
        Liu et al. 2023 (arXiv 2302.12453), the first regulariser.
    """
    shares = one_hot(y, len(means), features.dtype)
    counts = shares.sum(0)
    if is_class_ids(y):
        return ((features - means[y]).square().sum(1) / counts[y]).sum() / len(means)
    per_class = (shares * torch.cdist(features, means).square()).sum(0)
    return (per_class / counts.where(counts > 0, 1)).mean()


def smallest_angles(means: Tensor) -> Tensor:
    """Mean over classes of the smallest angle between a class's centred mean and another's.

    Args:
        means: (C, D), C at least 2.

    Returns:
        (1/C) sum_k arccos max_{j != k} cos(mu_k - mu, mu_j - mu), radians, a scalar; at most arccos(-1 / (C - 1)),
        where the means are a simplex. Liu et al. 2023 (arXiv 2302.12453): the second regulariser is its negative.
        Cosines are held to 0.99999 in size, for arccos has no slope at 1.

    Raises:
        ValueError: with fewer than two classes.
    """
    if len(means) < 2:
        raise ValueError(f"smallest_angles needs the means of at least 2 classes, got {len(means)}")
    unit = F.normalize(means - means.mean(0), dim=1)
    cosines = unit @ unit.T - 2 * torch.eye(len(means), dtype=unit.dtype, device=unit.device)
    return cosines.amax(1).clamp(-0.99999, 0.99999).acos().mean()


def simplex_etf(classes: int, dim: int) -> Tensor:
    """Unit vectors with pairwise cosine -1 / (classes - 1), as far apart as that many can be.

    Args:
        classes: at least 2.
        dim: at least classes - 1.

    Returns:
        (classes, dim), rows that sum to zero.

    Raises:
        ValueError: if the space is too small.
    """
    if classes < 2 or dim < classes - 1:
        raise ValueError(f"a simplex of {classes} vectors needs classes >= 2 and dim >= classes - 1, got dim {dim}")
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    vectors, values, _ = torch.linalg.svd(centred)
    points = vectors[:, : classes - 1] * values[: classes - 1]
    return F.pad(F.normalize(points, dim=1), (0, dim - classes + 1)).to(torch.get_default_dtype())


@torch.no_grad()
def neural_collapse_metrics(
    features: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None
) -> dict[str, float]:
    """How far a classifier's last layer is from neural collapse; each number falls to 0.

    Args:
        features: what goes into the last layer, (N, D).
        y: class ids (N,), every class present.
        weight, bias: of the last layer, (C, D) and (C,).

    Returns:
        ``within``: trace of within-class covariance times pseudo-inverse of between-class covariance, over C;
        ``norms`` and ``angles``: coefficient of variation of the centred means' lengths, and mean distance of their
        cosines from -1 / (C - 1); ``duality``: squared distance of weights and centred means, each of unit norm;
        ``nearest``: share of samples where the classifier does not choose the nearest mean. Papyan, Han, Donoho 2020
        (arXiv 2008.08186), section 3.
    """
    h, w = features.double(), weight.double()
    classes = len(w)
    shares = F.one_hot(y, classes).double()
    means = shares.T @ h / shares.sum(0)[:, None]
    apart, centred = h - means[y], means - means.mean(0)
    within, between = apart.T @ apart / len(h), centred.T @ centred / classes
    lengths = centred.norm(dim=1)
    unit = F.normalize(centred, dim=1)
    cosines = (unit @ unit.T)[~torch.eye(classes, dtype=torch.bool, device=h.device)]
    logits = h @ w.T if bias is None else h @ w.T + bias.double()
    nearest = torch.cdist(h, means).argmin(1)
    return {
        "within": float(torch.trace(torch.linalg.pinv(between, hermitian=True, rtol=1e-10) @ within)) / classes,
        "norms": float(lengths.std(correction=0) / lengths.mean()),
        "angles": float((cosines + 1 / (classes - 1)).abs().mean()),
        "duality": float((w / w.norm() - centred / centred.norm()).square().sum()),
        "nearest": float((logits.argmax(1) != nearest).double().mean()),
    }


class NeuralCollapse(Method, paper="nc-long-tail"):
    r"""Neural collapse for long-tailed classes: every class, however rare, gets a tight cluster in its own corner.

    Computes:
        strength times the class-balanced squared distance of features from their class's mean. The means are the
        method's own: after every update they move towards the batch's class means and, by ``separation``, down the
        gradient of minus their smallest angles. Features feel the second through the first.

    Formula:
        R_1 = \frac{1}{C} \sum_k \frac{1}{n_k} \sum_{i : y_i = k} \lVert h_i - \mu_k \rVert^2
        R_2 = -\frac{1}{C} \sum_k \arccos \max_{j \ne k} \cos(\mu_k - \bar\mu, \mu_j - \bar\mu)
        \mu_k \leftarrow \mu_k - \frac{C \eta}{2} \, \frac{\partial}{\partial \mu_k} \left( R_1 + \alpha R_2 \right)

    Helps:
        Tight clusters: on long-tailed digits the scatter within classes fell by a seventh against that between them, on
        test data, and calibration improved.

    Avoid:
        Expecting accuracy on small problems: on digits with 50 times more of the first class than of the last it
        fell by about a point on a balanced test set, and by more the stronger the pull.
        Classes that are absent from most batches, whose means stand still.

    Defaults:
        strength 0.01 and separation 10 (0.1 for the angles), of the size community code uses; the paper's own weights
        were not available to us. rate 0.1, our choice.

    Cost:
        One pass; classes x width numbers of memory, one product of that size with itself a step.

    Reference:
        Liu, Zhang, Hu, Cao, Yao, Pan 2023, Inducing Neural Collapse in Deep Long-tailed Learning, arXiv 2302.12453. As
        in public code the means are learned and the angles act on them alone; there the training's optimizer moves
        them, here gradient steps of their own, so that it need not know them. They begin as standard normal.

    Args:
        layer: name of the submodule whose output, flattened, are the features.
        classes: number of classes, at least 2.
        width: number of features.
        separation: alpha, weight of the angles beside the scatter.
        rate: eta, share of the way to the batch's class means that the means go in an update, in [0, 1].
        strength: factor of the penalty.
    """

    scope = "batch"
    reads = ("y",)
    targets = frozenset({"class"})
    example = {"layer": "2", "classes": 3, "width": 16}

    layer: str = knob()
    classes: int = knob(low=2)
    width: int = knob(low=1)
    separation: float = knob(10.0, low=0.0)
    rate: float = knob(0.1, low=0.0, high=1.0)
    strength: Scalar = knob(0.01, low=0.0, grid=(0.001, 0.01, 0.1), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.taps = (self.layer,)
        device = next(model.parameters()).device
        start = torch.randn(self.classes, self.width, generator=torch.Generator().manual_seed(0))
        self.means = nn.Buffer(start.to(device))
        self.counts = torch.zeros(self.classes, device=device)
        self.sums = torch.zeros_like(self.means)

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        found = step.taps[self.layer]
        h = step.gather((found[0] if isinstance(found, tuple) else found).flatten(1))
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        if h.shape[1] != self.width:
            raise ValueError(f"NeuralCollapse: '{self.layer}' puts out {h.shape[1]} features, not width={self.width}")
        y = step.gather(step.batch["y"])
        with torch.autocast(h.device.type, enabled=False):
            if step.first:
                self._note(h.detach().to(self.means.dtype), one_hot(y, self.classes), step.micro == 0)
            means = self.means.to(h.dtype)
            return within_class_scatter(h, y, means) - self.separation * smallest_angles(means)

    def _note(self, h: Tensor, shares: Tensor, fresh: bool) -> None:
        if fresh:
            self.counts.zero_()
            self.sums.zero_()
        self.counts += shares.sum(0)
        self.sums += shares.T @ h

    def update(self, step: Step) -> None:
        seen = self.counts[:, None] > 0
        pull = torch.where(seen, self.sums / self.counts.clamp_min(1e-12)[:, None] - self.means, 0)
        with torch.enable_grad():
            leaf = self.means.detach().requires_grad_()
            (push,) = torch.autograd.grad(smallest_angles(leaf), leaf)
        self.means.add_(pull + self.classes / 2 * self.separation * push, alpha=self.rate)
