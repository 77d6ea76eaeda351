"""ConR: contrast for regression, where near labels should mean near features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar

__all__ = ["ConR", "conr_loss", "inverse_label_density"]


def conr_loss(
    features: Tensor,
    y: Tensor,
    prediction: Tensor,
    window: float,
    tau: float = 0.07,
    push: float = 0.2,
    weight: Tensor | None = None,
) -> Tensor:
    """How hard it is to tell samples with near labels from those that are only predicted near.

    Args:
        features: (B, D); cosines are compared.
        y, prediction: targets and predictions, (B,) or (B, K) with the mean absolute difference over K as their gap.
        window: largest gap that counts as near, in units of y.
        tau: temperature of the cosines, above 0.
        push: eta, strength of the repulsion per unit of label gap.
        weight: rho, inverse density of each label (B,); None: 1.

    Returns:
        shape (B,), in at least float32: with positives P (near label, not oneself) and negatives N (far label, near
        prediction) of anchor i, the mean over p in P of -log exp(s_ip) / (sum_P exp(s_ij) + sum_N S_ij exp(s_ij)), s
        the cosine over tau and S_ij = push rho_i |y_i - y_j|. 0 for an anchor without positives or negatives.
        Keramati, Meng, Evans 2023 (arXiv 2309.06651), section 3. No gradient goes through predictions.
    """
    z = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(z.device.type, enabled=False), torch.no_grad():
        gap, guessed = _gaps(y.to(z.dtype)), _gaps(prediction.detach().to(z.dtype))
        near = gap <= window
        positive = near.clone().fill_diagonal_(False)
        negative = ~near & (guessed <= window)
        scale = push * gap if weight is None else push * weight.to(z.dtype)[:, None] * gap
        shift = torch.where(positive, 0.0, torch.where(negative, scale.log(), -torch.inf))
        counted = positive.any(1) & (negative & (scale > 0)).any(1)
        shift = torch.where(counted[:, None], shift, 0.0)  # no row of nothing but -inf
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z, dim=1)
        s = z @ z.T / tau
        pulled = (s * positive).sum(1) / positive.sum(1).clamp_min(1)
        return torch.where(counted, (s + shift).logsumexp(1) - pulled, 0.0)


def _gaps(values: Tensor) -> Tensor:
    """Mean absolute difference of any two rows, (B, B)."""
    rows = values.reshape(len(values), -1)
    return torch.cdist(rows, rows, p=1) / rows.shape[1]


def inverse_label_density(y: Tensor, labels: Tensor, bandwidth: float) -> Tensor:
    """How rare labels are: the inverse of a Gaussian kernel density of the training labels.

    Args:
        y: labels to weigh, (B,).
        labels: training labels, (N,).
        bandwidth: standard deviation of the kernel, in units of y, above 0.

    Returns:
        shape (B,), above 0, with mean 1 over the training labels.

    Raises:
        ValueError: if the bandwidth is not above 0.
    """
    if not bandwidth > 0:
        raise ValueError(f"inverse_label_density needs a bandwidth above 0, got {bandwidth:g}")

    def density(at: Tensor) -> Tensor:
        parts = torch.split(at, 256)
        return torch.cat([(-((part[:, None] - labels) / bandwidth).square() / 2).exp().mean(1) for part in parts])

    known = density(labels)
    return (1 / density(y).clamp_min(known.min())) / (1 / known).mean()


class ConR(Method, paper="conr"):
    r"""ConR: contrastive regularisation of regression with rare labels.

    Computes:
        strength times, for each sample of the batch, the cross-entropy of finding those with near labels by cosine of
        features, among them and those that have far labels but were predicted near. Such confusions, frequent where a
        rare label borrows the features of a common one, are pushed apart in proportion to the label gap.

    Formula:
        L_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{e^{s_{ip}}}{Z_i}
        Z_i = \sum_{j \in P_i} e^{s_{ij}} + \sum_{j \in N_i} S_{ij} \, e^{s_{ij}}
        s_{ij} = \frac{\cos(z_i, z_j)}{\tau}, \qquad S_{ij} = \eta \, \rho_i \, |y_i - y_j|
        P_i = \{ j \ne i : |y_i - y_j| \le w \}
        N_i = \{ j : |y_i - y_j| > w, \; |\hat{y}_i - \hat{y}_j| \le w \}

    Helps:
        Features that are ordered as the labels are: on a skewed regression problem the rank correlation of the two
        distances rose by about 0.05, in cosine, with seeds that went either way.

    Avoid:
        Expecting lower errors on small problems, on rare labels as well: none was seen, nor with weights by density.
        Where features explain the label well already, or where their Euclidean distance counts: its order got worse.
        Small batches, where an anchor meets no confusion.

    Defaults:
        tau 0.07 and push 0.2 (0.01 where labels are ages in years), the authors' code. The window is in the label's
        unit: there 1 year of age, 0.2 of depth. The paper's strength is 1 to 4.

    Cost:
        One pass; products of the batch's features with themselves.

    Reference:
        Keramati, Meng, Evans 2023, ConR: Contrastive Regularizer for Deep Imbalanced Regression, arXiv 2309.06651,
        section 3. Released code lets every pair that is neither add 1 to the denominator, divides by the positives
        with oneself among them, and for ages uses rho exp(eta gap) in place of S; here as in the formula. It doubles
        the batch by a second augmented view: hand in such batches if wanted.

    Args:
        layer: name of the submodule whose output, flattened, are the features.
        window: largest gap of near labels, in units of y, above 0.
        tau: temperature, above 0.
        push: eta, at least 0.
        weight: name of the batch's entry that holds rho (``inverse_label_density`` makes it); empty: all 1.
        strength: factor of the penalty.
    """

    scope = "batch"
    reads = ("prediction", "y")
    targets = frozenset({"real"})
    example = {"model": "regressor", "layer": "0", "window": 0.3}

    layer: str = knob()
    window: float = knob(above=0.0)
    tau: float = knob(0.07, above=0.0)
    push: float = knob(0.2, low=0.0)
    weight: str = ""
    strength: Scalar = knob(1.0, low=0.0, grid=(0.2, 1.0, 4.0), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.taps = (self.layer,)

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        if self.weight and self.weight not in step.batch:
            raise ValueError(f"ConR: the batch has no entry '{self.weight}'; it has {', '.join(step.batch)}")
        found = step.taps[self.layer]
        z = step.gather((found[0] if isinstance(found, tuple) else found).flatten(1))
        y, prediction = step.gather(step.batch["y"]), step.gather(step.out["prediction"].detach())
        rho = step.gather(step.batch[self.weight]) if self.weight else None
        return conr_loss(z, y, prediction, self.window, self.tau, self.push, rho).mean()
