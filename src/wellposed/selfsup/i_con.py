"""I-Con: one loss for representation learning, and the neighbour distributions that turn it into known ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.citing import implements
from ..core.parallel import gather, rank
from ..parts.neighbours import nearest, squared_distances
from ..parts.spectra import wide

__all__ = [
    "cluster_neighbours",
    "cosine_neighbours",
    "debiased",
    "gaussian_neighbours",
    "graph_neighbours",
    "icon_loss",
    "icon_views",
    "label_neighbours",
    "student_neighbours",
    "walked",
]


@implements("i-con")
def icon_loss(p: Tensor, log_q: Tensor) -> Tensor:
    r"""I-Con: the neighbours that the representation gives a sample are to be those it is known to have.

    Computes:
        The Kullback-Leibler divergence, for each sample i, of learned from given neighbour probabilities. Given:
        another view (``icon_views``), a label (``label_neighbours``), a graph (``graph_neighbours``), a kernel on the
        inputs. Learned: a kernel on embeddings (``gaussian_neighbours``, ``student_neighbours``,
        ``cosine_neighbours``) or shared clusters (``cluster_neighbours``). Up to the entropy of p, which is constant,
        this is InfoNCE, SupCon, cross-entropy, SNE, t-SNE and more; ``debiased`` and ``walked`` make p less sure.

    Formula:
        L = \frac{1}{N} \sum_i \sum_j p(j \mid i) \log \frac{p(j \mid i)}{q(j \mid i)}

    Helps:
        Combining what says who belongs together with how an embedding shows it; noisy neighbourhoods, by debiasing.

    Avoid:
        Expecting debiased clusters to beat k-means on digits: an earlier trial saw no difference. t-SNE as the mean of
        rows: its divergence is that of one distribution over all pairs, ``student_neighbours(z, joint=True)`` and the
        sum.

    Defaults:
        Temperature 0.5, no debiasing; the paper's clustering debiases with shares of 0.2 to 0.8.

    Cost:
        One pass; products of N^2 D.

    Reference:
        Alshammari, Hershey, Feldmann, Freeman, Hamilton 2025, I-Con: A Unifying Framework for Representation Learning,
        arXiv 2504.16929, Eq. 1. The mean over samples, there as here, does not give t-SNE, which the paper lists.

    Args:
        p: given probabilities, (N, M), rows that sum to 1 (or all of it, for a joint distribution).
        log_q: logarithms of the learned ones, same shape; -inf where p is 0 is fine.

    Returns:
        sum over j, shape (N,); take its mean, or for a joint distribution its sum.
    """
    p, log_q = wide(p), wide(log_q)
    known = p.clamp_min(torch.finfo(p.dtype).tiny).log()
    return (p * (known - log_q.masked_fill(p == 0, 0))).sum(1)


def icon_views(z1: Tensor, z2: Tensor, temperature: float = 0.5, debias: float = 0.0) -> Tensor:
    """The criterion of ``TwoViews`` that I-Con gives: NT-Xent, debiased.

    A sample's neighbour is its other view with probability 1 - ``debias``, anybody with ``debias``. Under data
    parallelism the neighbours are those of all ranks.

    Args:
        z1, z2: embeddings of the two views, (B, D).
        temperature: of the softmax over cosines, above 0.
        debias: in [0, 1]; at 0 the value is that of ``nt_xent``.

    Returns:
        mean over a sample's two views, shape (B,).
    """
    all1, all2 = gather(z1), gather(z2)
    rows = torch.arange(len(z1), device=z1.device) + rank() * len(z1)
    itself = F.one_hot(torch.cat([rows, rows + len(all1)]), 2 * len(all1)).bool()
    other = F.one_hot(torch.cat([rows + len(all1), rows]), 2 * len(all1))
    learned = cosine_neighbours(torch.cat([z1, z2]), temperature, torch.cat([all1, all2]), itself)
    return icon_loss(debiased(other.to(learned.dtype), debias, ~itself), learned).view(2, -1).mean(0)


# ---- learned neighbours: logarithms
def gaussian_neighbours(z: Tensor, sigma: float | Tensor = 1.0) -> Tensor:
    """log softmax_j(-||z_i - z_j||^2 / (2 sigma_i^2)) over j other than i: SNE's q.

    Args:
        z: (N, D).
        sigma: above 0; a number, or (N, 1).

    Returns:
        shape (N, N), -inf on the diagonal.
    """
    return _without_self(-squared_distances(z) / (2 * sigma**2)).log_softmax(1)


def student_neighbours(z: Tensor, joint: bool = False) -> Tensor:
    """Logarithm of 1 / (1 + ||z_i - z_j||^2), normalised over j other than i, or over all pairs: t-SNE's q.

    Args:
        z: (N, D).
        joint: whether all (N, N) probabilities sum to 1, as in t-SNE, rather than each row.
    """
    weight = _without_self(-squared_distances(z).log1p())
    return weight - (weight.flatten().logsumexp(0) if joint else weight.logsumexp(1, keepdim=True))


def cosine_neighbours(
    z: Tensor, temperature: float = 0.5, reference: Tensor | None = None, itself: Tensor | None = None
) -> Tensor:
    """log softmax_j(cos(z_i, r_j) / temperature): InfoNCE's and SupCon's q.

    Args:
        z: (N, D).
        temperature: above 0.
        reference: r (M, D); None: z, where a row is no neighbour of itself.
        itself: (N, M), true at pairs that are one and the same and so do not count.
    """
    if reference is None:
        reference, itself = z, torch.eye(len(z), dtype=torch.bool, device=z.device)
    with torch.autocast(z.device.type, enabled=False):
        logits = F.normalize(wide(z), dim=1) @ F.normalize(wide(reference), dim=1).T / temperature
    return (logits if itself is None else logits.masked_fill(itself, -torch.inf)).log_softmax(1)


def cluster_neighbours(probs: Tensor) -> Tensor:
    """Logarithm of the chance to get from i to j by drawing a cluster of i, then a member of it.

    Args:
        probs: membership phi, (N, C), rows that sum to 1.

    Returns:
        log sum_c phi_ic phi_jc / sum_k phi_kc, shape (N, N); i counts as its own neighbour, and for certain
        memberships q is 1 / (size of the cluster) inside it.
    """
    probs = wide(probs)
    tiny = torch.finfo(probs.dtype).tiny
    with torch.autocast(probs.device.type, enabled=False):
        return (probs / probs.sum(0).clamp_min(tiny) @ probs.T).clamp_min(tiny).log()


# ---- given neighbours: probabilities
def label_neighbours(y: Tensor) -> Tensor:
    """The others of the same label, with equal probability, (N, N); a row of zeros for a label that is alone."""
    same = (y[:, None] == y).float().fill_diagonal_(0)
    return same / same.sum(1, keepdim=True).clamp_min(1)


def graph_neighbours(x: Tensor, k: int) -> Tensor:
    """The k nearest rows of x (N, D), with equal probability, (N, N)."""
    _, index = nearest(x, k)
    return torch.zeros(len(x), len(x), device=x.device).scatter(1, index, 1 / k)


def debiased(p: Tensor, share: float, among: Tensor | None = None) -> Tensor:
    """(1 - share) p + share * uniform: false neighbours cost less, and missed ones count.

    Args:
        p: probabilities, (N, M).
        share: in [0, 1].
        among: (N, M), true at those who can be neighbours at all; None: everybody.

    Raises:
        ValueError: for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"debiased: share must be 0 to 1, got {share:g}")
    uniform = torch.ones_like(p) if among is None else among.to(p.dtype)
    return torch.lerp(p, uniform / uniform.sum(1, keepdim=True), share)


def walked(p: Tensor, steps: int) -> Tensor:
    """Mean of p, p^2, ..., p^steps: where a walk of up to so many steps from neighbour to neighbour is; p (N, N)."""
    power, total = p, p
    for _ in range(steps - 1):
        power = power @ p
        total = total + power
    return total / steps


def _without_self(values: Tensor) -> Tensor:
    return values.masked_fill(torch.eye(len(values), dtype=torch.bool, device=values.device), -torch.inf)
