"""Forests, boosting, neighbours and ridge as smoothers: weights on the training labels, and how many they amount to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core import implements

__all__ = ["effective_parameters", "smoother_weights", "smoothing_report"]

Matrix = NDArray[np.float64]

AVERAGING = ("squared_error", "friedman_mse", "poisson", "gini", "entropy", "log_loss")
"""Criteria whose leaves predict a mean, as absolute errors do not."""


def effective_parameters(weights: Matrix) -> float:
    """n times the mean squared length of the weights (M, n): n where single labels are copied, 1 for their mean."""
    return float(weights.shape[1] * np.square(weights).sum(1).mean())


def smoother_weights(estimator: Any, x_train: ArrayLike, x: ArrayLike) -> Matrix:
    """Weights of the training labels in the predictions of a fitted scikit-learn estimator.

    Args:
        estimator: decision or extra tree, random forest or extra trees (regressors; of classifiers the probabilities),
            ``GradientBoostingRegressor`` of squared error, ``KNeighborsRegressor`` or ``-Classifier``, ``Ridge`` or
            ``LinearRegression``, fitted without sample weights. For a net's features fit a ``Ridge`` to them.
        x_train: (n, d), what it was fitted to, in the same order.
        x: (M, d), where to predict.

    Returns:
        (M, n): its product with the training labels (of a classifier one-hot) is the prediction.

    Raises:
        ValueError: for an estimator of another kind, or fitted to other rows or with weights.
    """
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import LinearRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    train, new = np.asarray(x_train), np.asarray(x)
    if isinstance(estimator, GradientBoostingRegressor):
        return _boosted(estimator, train, new)
    if isinstance(estimator, KNeighborsRegressor | KNeighborsClassifier):
        return _neighbours(estimator, len(train), new)
    if isinstance(estimator, Ridge | LinearRegression):
        return _linear(estimator, train, new)
    total = np.zeros((len(new), len(train)))
    trees = members(estimator, len(train))
    for tree, counts in trees:
        total += _leaf(tree, counts, train, new)
    return total / len(trees)


@implements("forest-smoothers")
def smoothing_report(estimator: Any, x_train: ArrayLike, x: ArrayLike, y: ArrayLike | None = None) -> dict[str, float]:
    r"""Smoothing report: how many effective parameters a forest has, where it trained and where it has to predict.

    Computes:
        Writes the forest as weights s(x) on the training labels and counts effective parameters from their squared
        length, on the training inputs and on new ones, for the forest and its trees by themselves; and how much the
        trees' predictions scatter, which is exactly what averaging takes off their mean squared error.
        ``smoother_weights`` gives the weights, also of boosting, nearest neighbours and ridge regression.

    Formula:
        s_j(x) = \frac{1}{B} \sum_b \frac{c_{bj} 1[l_b(x) = l_b(x_j)]}{\sum_i c_{bi} 1[l_b(x) = l_b(x_i)]}
        p(I) = \frac{n}{|I|} \sum_{i \in I} \|s(x_i)\|^2

    Helps:
        Seeing why a forest that reproduces its training labels generalises: on new inputs it averages over many of
        them. With a third of the features at each split, 200 parameters on the training inputs of 200 rows became about
        14 on new ones.

    Avoid:
        Choosing by effective parameters: fewer are not better. A forest that tries a tenth of the features has the
        fewest, and a larger error than one that tries a third.

    Defaults:
        None.

    Cost:
        One matrix of new by training inputs for each tree.

    Reference:
        Curth, Jeffares, van der Schaar 2024, Why do Random Forests Work? Understanding Tree Ensembles as
        Self-Regularizing Adaptive Smoothers, arXiv 2402.01502. Counts c are those of the bootstrap. That averaging
        gains the scatter is the ambiguity decomposition of Krogh, Vedelsby 1995.

    Args:
        estimator: a fitted forest, or a tree, of scikit-learn; for scatter and errors a regressor.
        x_train: (n, d), what it was fitted to.
        x: (M, d), new inputs.
        y: their labels (M,); None: no errors.

    Returns:
        effective parameters ``train``, ``test``, ``trees: train`` and ``trees: test`` (mean over trees); for a
        regressor ``scatter``, mean variance of the trees' predictions, and with ``y`` mean squared ``error`` and
        ``trees: error``.

    Raises:
        ValueError: for another estimator, or one fitted to other rows or with weights.
    """
    train, new = np.asarray(x_train), np.asarray(x)
    found = dict.fromkeys(("train", "test", "trees: train", "trees: test"), 0.0)
    trees = members(estimator, len(train))
    for where, at in (("train", train), ("test", new)):
        total = np.zeros((len(at), len(train)))
        for tree, counts in trees:
            weights = _leaf(tree, counts, train, at)
            found[f"trees: {where}"] += effective_parameters(weights) / len(trees)
            total += weights
        found[where] = effective_parameters(total / len(trees))
    if hasattr(estimator, "predict_proba"):
        return found
    each = np.stack([tree.predict(new) for tree, _ in trees])
    found["scatter"] = float(each.var(0).mean())
    if y is not None:
        target = np.asarray(y, dtype=float)
        if target.shape != each.shape[1:]:
            raise ValueError(f"labels of the shape {each.shape[1:]} are needed, got {target.shape}")
        found["error"] = float(np.square(each.mean(0) - target).mean())
        found["trees: error"] = float(np.square(each - target).mean())
    return found


# ---- kinds of estimators
def members(estimator: Any, rows: int) -> list[tuple[Any, Matrix]]:
    """The trees, each with how often it saw every training row."""
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    once = np.ones(rows)
    if isinstance(estimator, DecisionTreeRegressor | DecisionTreeClassifier):
        return [(estimator, once)]
    forests = RandomForestRegressor | RandomForestClassifier | ExtraTreesRegressor | ExtraTreesClassifier
    if not isinstance(estimator, forests):
        raise ValueError(f"no smoother that is known: {type(estimator).__name__}")
    if not estimator.bootstrap:
        return [(tree, once) for tree in estimator.estimators_]
    drawn = [np.bincount(rows_of, minlength=rows).astype(float) for rows_of in estimator.estimators_samples_]
    return list(zip(estimator.estimators_, drawn, strict=True))


def _leaf(tree: Any, counts: Matrix, train: NDArray[Any], new: NDArray[Any]) -> Matrix:
    """Weights of one tree: those in the leaf of a new input share it."""
    if tree.criterion not in AVERAGING or tree.monotonic_cst is not None:
        raise ValueError("the leaves of a tree with another criterion, or with monotonic constraints, are no means")
    ours = tree.apply(train)
    size = np.bincount(ours, counts, tree.tree_.node_count)
    leaves = tree.tree_.children_left < 0
    if len(counts) != len(train) or not np.allclose(size[leaves], tree.tree_.weighted_n_node_samples[leaves]):
        raise ValueError("the tree was fitted to other rows, or with weights")
    found: Matrix = (tree.apply(new)[:, None] == ours) * (counts / np.maximum(size[ours], 1))
    return found


def _boosted(estimator: Any, train: NDArray[Any], new: NDArray[Any]) -> Matrix:
    """Each tree averages what the sum of the earlier ones leaves of the labels."""
    if estimator.loss != "squared_error" or estimator.subsample < 1 or estimator.init not in (None, "zero"):
        raise ValueError("boosting is a smoother with squared error, all rows and an initial mean or zero only")
    start = 0.0 if estimator.init == "zero" else 1 / len(train)
    seen, found = (np.full((len(at), len(train)), start) for at in (train, new))
    once = np.ones(len(train))
    for tree in estimator.estimators_[:, 0]:
        left = np.eye(len(train)) - seen
        found += estimator.learning_rate * _leaf(tree, once, train, new) @ left
        seen += estimator.learning_rate * _leaf(tree, once, train, train) @ left
    return found


def _neighbours(estimator: Any, rows: int, new: NDArray[Any]) -> Matrix:
    if estimator.weights not in ("uniform", "distance") or estimator.n_samples_fit_ != rows:
        raise ValueError("neighbours must have been fitted to these rows and have uniform or distance weights")
    distances, places = estimator.kneighbors(new)
    if estimator.weights == "distance":
        exact = distances == 0  # where there are any, they alone count
        shares = np.where(exact.any(1, keepdims=True), exact, 1 / np.where(distances == 0, 1, distances))
    else:
        shares = np.ones_like(distances)
    found = np.zeros((len(new), rows))
    np.put_along_axis(found, places, shares / shares.sum(1, keepdims=True), 1)
    return found


def _linear(estimator: Any, train: NDArray[Any], new: NDArray[Any]) -> Matrix:
    strength = getattr(estimator, "alpha", 0.0)
    if np.ndim(strength) or estimator.positive:
        raise ValueError("ridge regression with one strength and free signs is needed")
    mean = train.mean(0) if estimator.fit_intercept else np.zeros(train.shape[1])
    left, values, right = np.linalg.svd(train - mean, full_matrices=False)
    kept = values > values.max() * max(train.shape) * np.finfo(float).eps
    shrunk = np.where(kept, values / np.where(kept, values**2 + strength, 1), 0)
    found: Matrix = ((new - mean) @ right.T * shrunk) @ left.T
    return found + (1 / len(train) if estimator.fit_intercept else 0)
