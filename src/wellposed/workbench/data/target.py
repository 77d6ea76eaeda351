"""Classification or regression? Read from the target's values, and said in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import BadInput

FEW = 20
"""Whole-number targets with at most this many distinct values, each seen `OFTEN` times on average, are classes."""
OFTEN = 5
MIN_ROWS = 10


@dataclass(frozen=True)
class Target:
    """An encoded target: `y` (n,) is int64 class indices or float64 values; `why` is a half-sentence."""

    task: Literal["classification", "regression"]
    y: np.ndarray
    classes: tuple[str, ...] | None
    why: str
    warnings: tuple[str, ...]


def encode(values: np.ndarray, task: str | None, name: str, *, integers_are_labels: bool = False) -> Target:
    """Encode `values` (n,) of booleans, numbers or strings; `name` is how messages call the target.

    `task` overrules the detection; `integers_are_labels` makes whole numbers classes however many there are,
    as image sets have them. Raises `BadInput` for missing or infinite values, a single value, too few rows,
    or a `task` that does not fit.
    """
    if task not in (None, "classification", "regression"):
        raise BadInput(f"unknown task '{task}': choose classification or regression")
    number = values.dtype.kind in "iuf"
    _refuse_gaps(values, name)
    if len(values) < MIN_ROWS:
        raise BadInput(f"{name} has only {len(values)} rows: at least {MIN_ROWS} are needed to train and test")
    distinct, y, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(distinct) == 1:
        raise BadInput(f"{name} has the single value {distinct[0]} in all {len(values)} rows: nothing to learn")

    whole = number and bool(np.all(distinct == np.round(distinct)))
    few = len(distinct) <= FEW and len(values) >= OFTEN * len(distinct)
    labels = whole and (few or (integers_are_labels and values.dtype.kind != "f"))
    if task is None:
        task = "regression" if number and not labels and len(distinct) > 2 else "classification"
        chosen = ""
    else:
        chosen = ", as asked"
    if task == "regression":
        if not number:
            raise BadInput(f"{name} holds {_sort(values)}, which cannot be a regression target: use numbers")
        low, high = float(distinct[0]), float(distinct[-1])
        why = f"{name} read as regression{chosen} ({len(distinct):,} distinct numbers from {low:g} to {high:g})"
        return Target("regression", values.astype(np.float64), None, why, ())

    if len(values) < 2 * len(distinct):
        raise BadInput(
            f"{name} has {len(distinct)} classes in only {len(values)} rows: choose a target with at least two "
            "rows a class on average"
        )
    classes = tuple(str(int(v)) if whole else str(v) for v in distinct.tolist())
    sort = "whole numbers" if whole else _sort(values)
    why = f"{name} read as classification{chosen} into {len(classes)} classes ({sort})"
    return Target("classification", y.astype(np.int64), classes, why, rare(classes, counts))


def rare(classes: Sequence[str], counts: np.ndarray) -> tuple[str, ...]:
    """A warning when classes have too few rows to be in every part of a split."""
    names = [f"'{name}' ({count})" for name, count in zip(classes, counts, strict=True) if count < OFTEN]
    if not names:
        return ()
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (f"classes with fewer than {OFTEN} rows may be absent from training or test: {shown}",)


def _refuse_gaps(values: np.ndarray, name: str) -> None:
    if values.dtype.kind == "f":
        gaps, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if infinite:
            raise BadInput(f"{name} is infinite in {infinite} of {len(values)} rows: correct or remove these rows")
    else:
        gaps = sum(v is None or v != v for v in values.tolist())
    if gaps:
        raise BadInput(f"{name} has no value in {gaps} of {len(values)} rows: fill or remove these rows first")


def _sort(values: np.ndarray) -> str:
    """What the values are, in words."""
    return {"b": "true or false", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}.get(
        values.dtype.kind, "words"
    )
