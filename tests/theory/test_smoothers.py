"""Smoothers: weights times labels are the predictions, and the extremes of effective parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_friedman1
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.tree import DecisionTreeRegressor

from wellposed.core.card import card
from wellposed.theory.smoothers import effective_parameters, smoother_weights, smoothing_report

X, Y = make_friedman1(n_samples=120, n_features=6, noise=1.0, random_state=0)
NEW, TARGET = X[60:], Y[60:]
X, Y = X[:60], Y[:60]

ESTIMATORS = (
    DecisionTreeRegressor(max_leaf_nodes=7, random_state=0),
    RandomForestRegressor(5, max_features=0.5, random_state=0),
    RandomForestRegressor(5, max_samples=0.5, min_samples_leaf=3, random_state=0),
    RandomForestRegressor(5, max_features=0.5, bootstrap=False, random_state=0),
    ExtraTreesRegressor(5, random_state=0),
    GradientBoostingRegressor(n_estimators=8, random_state=0),
    GradientBoostingRegressor(n_estimators=3, init="zero", random_state=0),
    KNeighborsRegressor(4),
    KNeighborsRegressor(4, weights="distance"),
    Ridge(0.3),
    Ridge(0.3, fit_intercept=False),
    LinearRegression(),
)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_weights_times_labels_are_predictions(estimator: Any) -> None:
    estimator.fit(X, Y)
    for at in (X, NEW):
        assert smoother_weights(estimator, X, at) @ Y == pytest.approx(estimator.predict(at), rel=1e-10)


def test_probabilities_of_a_classifier() -> None:
    label = (Y > 15).astype(int)
    forest = RandomForestClassifier(5, max_depth=3, random_state=0).fit(X, label)
    assert smoother_weights(forest, X, NEW) @ np.eye(2)[label] == pytest.approx(forest.predict_proba(NEW), rel=1e-10)
    assert set(smoothing_report(forest, X, NEW)) == {"train", "test", "trees: train", "trees: test"}


def test_extremes_of_effective_parameters() -> None:
    assert effective_parameters(np.full((7, 60), 1 / 60)) == pytest.approx(1)
    assert effective_parameters(np.eye(60)) == 60
    full = smoothing_report(DecisionTreeRegressor(random_state=0).fit(X, Y), X, NEW)
    assert full["train"] == full["test"] == full["trees: test"] == 60
    assert full["scatter"] == 0
    stump = smoother_weights(DecisionTreeRegressor(max_depth=1, random_state=0).fit(X, Y), X, X)
    assert effective_parameters(stump) == pytest.approx(2)  # in-sample: the trace of a projection
    fit = Ridge(0.0).fit(X, Y)
    assert effective_parameters(smoother_weights(fit, X, X)) == pytest.approx(7)


def test_averaging_gains_the_scatter() -> None:
    assert card(smoothing_report).formula
    forest = RandomForestRegressor(10, random_state=0).fit(X, Y)
    found = smoothing_report(forest, X, NEW, TARGET)
    assert found["trees: error"] - found["scatter"] == pytest.approx(found["error"])
    assert found["error"] == pytest.approx(float(np.square(forest.predict(NEW) - TARGET).mean()))
    assert found["test"] == pytest.approx(effective_parameters(smoother_weights(forest, X, NEW)))
    assert found["test"] < found["train"] < found["trees: train"]


def test_what_is_no_smoother_is_refused() -> None:
    weighted = DecisionTreeRegressor(random_state=0).fit(X, Y, sample_weight=np.arange(60) + 1.0)
    median = DecisionTreeRegressor(criterion="absolute_error", random_state=0).fit(X, Y)
    for estimator, says in (
        (weighted, "with weights"),
        (median, "are no means"),
        (HistGradientBoostingRegressor().fit(X, Y), "no smoother that is known"),
        (GradientBoostingRegressor(n_estimators=2, subsample=0.5).fit(X, Y), "all rows"),
        (KNeighborsRegressor(3, weights=lambda d: d).fit(X, Y), "uniform or distance"),
        (Ridge(positive=True).fit(X, Y), "free signs"),
    ):
        with pytest.raises(ValueError, match=says):
            smoother_weights(estimator, X, NEW)
    with pytest.raises(ValueError, match="other rows"):
        smoother_weights(DecisionTreeRegressor(random_state=0).fit(X, Y), X[::2], NEW)
    with pytest.raises(ValueError, match="labels of the shape"):
        smoothing_report(DecisionTreeRegressor(random_state=0).fit(X, Y), X, NEW, TARGET[:3])
