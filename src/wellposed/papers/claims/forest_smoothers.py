"""Tree ensembles as adaptive smoothers, Curth et al. 2024."""

from typing import Any

from ...theory.smoothers import smoothing_report
from ..claim import Claim
from ..mutation import Function, Mutation

ROWS = 200
TREES = [1, 2, 5, 10, 20, 50]


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """Forests of more and more trees that reproduce their training labels."""
    from sklearn.datasets import make_friedman1
    from sklearn.ensemble import RandomForestRegressor

    x, y = make_friedman1(n_samples=ROWS + 300, n_features=10, noise=1.0, random_state=seed)
    reports = []
    for trees in TREES:
        forest = RandomForestRegressor(trees, max_features=1 / 3, bootstrap=False, random_state=seed)
        forest.fit(x[:ROWS], y[:ROWS])
        reports.append(smoothing_report(forest, x[:ROWS], x[ROWS:]))
    return {
        "curve": {
            "trees": [float(trees) for trees in TREES],
            "parameters on training inputs": [r["train"] for r in reports],
            "parameters on new inputs": [r["test"] for r in reports],
        }
    }


def only_the_first(original: Function) -> Function:
    """Of the members of an ensemble only one."""

    def first(*args: Any) -> Any:
        return original(*args)[:1]

    return first


CLAIM = Claim(
    paper="forest-smoothers",
    statement="A forest of full trees, each of which copies single labels, has far fewer effective parameters on new "
    "inputs than on those it was trained on: it smooths the more where it has to predict.",
    arena=f"Friedman 1 with noise of sd 1, {ROWS} training rows, 10 features, 300 new rows; full trees without "
    "bootstrap, a third of the features at each split",
    quantity=f"effective parameters on training minus on new inputs, over {ROWS}, with {TREES[-1]} trees",
    kind="curve",
    gain=lambda curve: (curve["parameters on training inputs"][-1] - curve["parameters on new inputs"][-1]) / ROWS,
    margin=0.4,
    run=run,
    mutation=Mutation(
        words="one tree of the forest in place of all",
        target="wellposed.theory.smoothers:members",
        by=only_the_first,
    ),
)
