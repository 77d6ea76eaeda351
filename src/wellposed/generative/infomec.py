"""InfoMEC: are the sources of the data found in the latents, each in few, apart from one another, and readable?"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..core import implements

__all__ = ["InfoMEC", "infomec"]

Estimator = Literal["plug-in", "bins", "knn"]
MANY = 50  # values of a latent


@dataclass(frozen=True)
class InfoMEC:
    """Scores of a code, each at most 1.

    Attributes:
        modularity: does a latent speak of one source only? 0: of all equally.
        compactness: is a source spoken of by one latent only? 0: by all equally.
        explicitness: share of the sources' uncertainty that a linear probe removes; nan without the probe.
        nmi: mutual information of latent i and source j over the entropy of source j, (L, S).
        active: which latents vary, (L,); the others count in none of the scores.
        estimator: how the mutual information was estimated.
    """

    modularity: float
    compactness: float
    explicitness: float
    nmi: Tensor
    active: Tensor
    estimator: str


@implements("latent-quantization")
def infomec(
    z: Tensor,
    sources: Tensor,
    estimator: Estimator = "plug-in",
    *,
    bins: int = 20,
    neighbours: int = 10,
    seed: int = 0,
    probe: bool = True,
) -> InfoMEC:
    r"""Scores of modularity, compactness and explicitness of a code for known sources.

    Computes:
        The mutual information of every latent with every source, over the source's entropy; modularity compares the
        largest of a latent's row with the row's sum, compactness the largest of a source's column with the column's
        sum, each rescaled so that an even spread is 0. Explicitness is one minus the cross-entropy of an unpenalised,
        class-balanced logistic regression, over that of guessing, on the rows given.

    Formula:
        N_{ij} = \frac{I(z_i; s_j)}{H(s_j)}
        M = \frac{1}{L} \sum_i \frac{\max_j N_{ij} / \sum_j N_{ij} - 1/S}{1 - 1/S}
        C = \frac{1}{S} \sum_j \frac{\max_i N_{ij} / \sum_i N_{ij} - 1/L}{1 - 1/L}
        E = \frac{1}{S} \sum_j \left( 1 - \frac{H_{\mathrm{probe}}(s_j \mid z)}{\log K_j} \right)

    Helps:
        Comparing codes where the sources are known, as in synthetic data.

    Avoid:
        Comparing codes read by different estimators. A plain autoencoder's modularity on three sources was 0.08 with
        "knn" and 0.48 with 8 bins: without noise a continuous latent carries all about every source, and the
        estimator's resolution sets the ratio. Few samples: "plug-in" is biased upwards, by about
        (a - 1) (b - 1) / 2N nats for a and b values, so an identical code scores a little below 1.

    Defaults:
        "plug-in", for quantised codes; the paper reads continuous ones by "knn" with 10 neighbours.

    Cost:
        A sort of every latent; "knn" searches neighbours for every pair. A logistic regression for every source.

    Reference:
        Hsu, Dorrell, Whittington, Wu, Finn 2023, Disentanglement via Latent Quantization, arXiv 2305.18378, section 4,
        and its released code for what it leaves open: L counts active latents, explicitness is that of the rows the
        probe was fitted on. Other than there, the probe's cross-entropy is balanced over classes as its fit is, and it
        reads active latents only. "bins" is ours, to read two codes at one resolution.

    Args:
        z: codes (N, L).
        sources: (N, S), integers; classes need not be consecutive.
        estimator: of mutual information. "plug-in": the frequencies of a latent's distinct values, for quantised codes.
            "bins": the same after cutting every latent into ``bins`` equally filled bins. "knn": of Ross 2014, by
            nearest neighbours, for continuous codes (needs scikit-learn, as the probe does).
        bins: at least 2.
        neighbours: at least 1.
        seed: of the noise with which "knn" breaks ties.
        probe: False leaves explicitness out (nan), which costs the most.

    Returns:
        the scores; a latent counts as active if it varies at all ("plug-in"), or by more than a twentieth of the range
        of the widest latent. Where a score compares with one latent or one source only it is 1.

    Raises:
        ValueError: for shapes or names that do not fit, NaN or infinity in z, a source of one class, a code of which
            nothing varies, or one that is not quantised where "plug-in" reads it.
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f"infomec: estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}")
    if z.ndim != 2 or sources.ndim != 2 or len(z) != len(sources):
        raise ValueError(
            "infomec: codes are (N, L) and sources (N, S) for the same samples, "
            f"got {tuple(z.shape)} and {tuple(sources.shape)}"
        )
    if sources.is_floating_point():
        raise ValueError("infomec: sources are integers, one class a value; cut continuous sources into bins first")
    if bins < 2 or neighbours < 1:
        raise ValueError(f"infomec: needs at least 2 bins and 1 neighbour, got {bins} and {neighbours}")
    codes = z.detach().cpu().double().numpy()
    if not np.isfinite(codes).all():
        raise ValueError("infomec: z holds NaN or infinite values; leave those rows out")
    truth = np.stack([_categories(column) for column in sources.detach().cpu().numpy().T], 1)
    if (truth.max(0) == 0).any():
        raise ValueError("infomec: a source of a single class has no information to be found")
    ranges = np.ptp(codes, 0)
    active = ranges > (0 if estimator == "plug-in" else ranges.max() / 20)
    if not active.any():
        raise ValueError("infomec: no latent varies")

    read = codes[:, active]
    if estimator == "bins":
        read = np.stack([_binned(column, bins) for column in read.T], 1)
    if estimator == "knn":
        information = _by_neighbours(read, truth, neighbours, seed)
    else:
        read = np.stack([_categories(column) for column in read.T], 1)
        values = read.max() + 1
        if values > MANY and 2 * values > len(read):
            raise ValueError(
                f"infomec: a latent has {values} values over {len(read)} samples, whose frequencies tell nothing: take "
                'estimator="knn" or "bins" for continuous codes'
            )
        information = np.array([[_mutual_information(a, b) for b in truth.T] for a in read.T])
    shares = information / np.array([_entropy(np.bincount(column)) for column in truth.T])
    nmi = np.zeros((len(active), truth.shape[1]))
    nmi[active] = shares
    explicitness = [_explicitness(read, column, estimator != "knn") for column in truth.T] if probe else [math.nan]
    return InfoMEC(
        modularity=float(_concentration(shares).mean()),
        compactness=float(_concentration(shares.T).mean()),
        explicitness=float(np.mean(explicitness)),
        nmi=torch.from_numpy(nmi),
        active=torch.from_numpy(active),
        estimator=estimator,
    )


def _concentration(rows: np.ndarray) -> np.ndarray:
    """How much of each row is in its largest entry: 0 for an even row (and one of zeros), 1 for a single entry."""
    even = 1 / rows.shape[1]
    if even == 1:
        return np.ones(len(rows))
    sums = rows.sum(1)
    largest = np.divide(rows.max(1), sums, out=np.full(len(rows), even), where=sums > 0)
    return (largest - even) / (1 - even)


def _categories(values: np.ndarray) -> np.ndarray:
    """0, 1, ... for the distinct values."""
    found: np.ndarray = np.unique(values, return_inverse=True)[1].ravel()
    return found


def _binned(values: np.ndarray, bins: int) -> np.ndarray:
    """The quantile bin of each value; equal values share theirs."""
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def _entropy(counts: np.ndarray) -> float:
    """Of a table of counts, in nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Of two columns of categories, from their frequencies."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    return max(0.0, _entropy(table.sum(0)) + _entropy(table.sum(1)) - _entropy(table))


def _by_neighbours(codes: np.ndarray, truth: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
    from sklearn.feature_selection import mutual_info_classif

    return np.stack(
        [
            mutual_info_classif(codes, column, discrete_features=False, n_neighbors=neighbours, random_state=seed)
            for column in truth.T
        ],
        1,
    )


def _explicitness(codes: np.ndarray, source: np.ndarray, discrete: bool) -> float:
    """1 minus the probe's balanced cross-entropy over that of guessing, which is log K."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    if discrete:
        features = np.concatenate([np.eye(column.max() + 1)[column] for column in codes.T], 1)
    else:
        features = (codes - codes.mean(0)) / codes.std(0)
    probe = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=500)
    with warnings.catch_warnings():  # classes that can be separated have no finite optimum
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features, source)
    weights = 1 / np.bincount(source)[source]
    loss = log_loss(source, probe.predict_proba(features), sample_weight=weights)
    return 1 - loss / math.log(source.max() + 1)
