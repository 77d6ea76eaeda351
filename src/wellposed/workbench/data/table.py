"""Tables from files: CSV, TSV and Parquet, with numbers, words, dates and gaps."""

import csv
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadInput
from . import target as targets
from .dataset import Data

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
LEVELS = 32
"""A text column keeps this many categories, the most frequent; the others are one together."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")
_IDENTIFIER = re.compile(r"(?i:(.*[\W_])?(id|index)|unnamed: 0)|.*[a-z](Id|ID)")
_DECIMAL_COMMA = re.compile(r'(^|;)"?-?\d+,\d+"?(;|$)')


def load(path: Path, target: str | None, task: str | None) -> Data:
    """Read a table and its `target` column; see `from_frame`."""
    frame = _read(path)
    frame.columns = frame.columns.map(str)
    names = list(frame.columns)
    if frame.empty:
        raise BadInput(f"{path} is empty: a header line and at least {targets.MIN_ROWS} rows are needed")
    if target is None:
        raise BadInput(f"{path.name} needs --target with the column to predict, one of {_listed(names)}")
    if target not in names:
        close = difflib.get_close_matches(target, names, 1)
        guess = f"did you mean '{close[0]}'? The" if close else "the"
        header = " (does the file lack a header line?)" if any(_is_number(name) for name in names) else ""
        raise BadInput(f"{path.name} has no column '{target}': {guess} columns are {_listed(names)}{header}")
    return from_frame(path.name, frame.drop(columns=target), frame[target], task)


def from_frame(name: str, features: "pd.DataFrame", target: "pd.Series", task: str | None) -> Data:
    """Make a `Data` of a table of features and the column to predict.

    Numbers, booleans, dates (days since 1970) and numbers written as words become float64 columns; every other
    column becomes categories. Columns that hold one value only, and columns of identifiers, are left out with a
    warning; so are rows without any feature. Raises `BadInput` when nothing is left or the target has gaps.
    """
    import pandas as pd

    if not features.columns.size:
        raise BadInput(f"{name} has no feature to learn from: the target is its only column")
    blank = features.isna().all(axis=1)
    features, target = features[~blank], target[~blank]
    warnings = [f"{blank.sum()} rows were left out: they hold no feature at all"] if blank.any() else []
    columns = {}
    for label in features:
        column, why_not = _column(features[label])
        if column is None:
            warnings.append(f"column '{label}' was left out: {why_not}")
            continue
        if column.dtype.kind == "f" and np.isinf(column).any():
            warnings.append(f"column '{label}' is infinite in {np.isinf(column).sum()} rows: read as missing there")
            column = column.where(np.isfinite(column))
        columns[str(label)] = column
    if not columns:
        raise BadInput(f"{name} has no feature to learn from: {'; '.join(warnings)}")

    encoded = targets.encode(_target_values(target), task, f"target '{target.name}' of {name}")
    x = pd.DataFrame(columns).reset_index(drop=True)
    twins = int(x.assign(**{"\0target": encoded.y}).duplicated().sum())
    if twins:
        warnings.append(f"{twins} of {len(x)} rows repeat an earlier row: training and test may share them")
    words = sum(kind.kind != "f" for kind in x.dtypes)
    gaps = int(features[list(columns)].isna().any(axis=1).sum())
    return Data(
        name=name,
        task=encoded.task,
        kind="tabular",
        description=(
            f"{len(x):,} rows, {len(columns)} features ({len(columns) - words} numeric, {words} categorical; "
            f"{f'{gaps:,} rows' if gaps else 'no row'} with missing values); {encoded.why}"
        ),
        x=x,
        y=encoded.y,
        classes=encoded.classes,
        warnings=[*warnings, *encoded.warnings],
        dropped_rows=int(blank.sum()),
    )


def _column(raw: "pd.Series") -> "tuple[pd.Series | None, str]":
    """The column as float64 numbers or as categories (str), or None and why it is left out."""
    try:
        distinct = raw.nunique(dropna=False)
    except TypeError:
        raise BadInput(f"column '{raw.name}' holds lists or other objects: use numbers or words") from None
    if distinct <= 1:
        return None, "it has the same value in every row"
    numbers = _numbers(raw)
    if numbers is not None:
        if _IDENTIFIER.fullmatch(str(raw.name)) and distinct == len(raw) and (numbers % 1 == 0).all():
            return None, "it numbers the rows, as an id does"
        return numbers, ""
    words = _words(raw)
    levels = words.value_counts()
    present = int(levels.sum())
    if len(levels) == present or (len(levels) > LEVELS and len(levels) > 0.9 * present):
        return None, "it has another text in (nearly) every row, as an id does"
    kept = levels.index[:LEVELS]
    return words.where(words.isna() | words.isin(kept), "(other)").fillna("(missing)"), ""


def _numbers(raw: "pd.Series") -> "pd.Series | None":
    """The column as float64 with NaN for missing, or None if it holds words."""
    import pandas as pd

    present = raw.notna()
    if pd.api.types.is_timedelta64_dtype(raw):
        return raw.dt.total_seconds()
    if pd.api.types.is_datetime64_any_dtype(raw):
        return _days(raw)
    if pd.api.types.is_numeric_dtype(raw):
        return pd.Series(raw.to_numpy(np.float64, na_value=np.nan), index=raw.index)
    words = _words(raw)
    numbers = pd.to_numeric(words, errors="coerce")
    if numbers.notna().equals(present):
        return numbers.astype(np.float64)
    if words[present].map(lambda word: bool(_DATE.fullmatch(word))).all():
        dates = pd.to_datetime(words, format="ISO8601", errors="coerce", utc=True)
        if dates.notna().equals(present):
            return _days(dates)
    return None


def _words(raw: "pd.Series") -> "pd.Series":
    return raw.astype(object).map(lambda value: str(value).strip(), na_action="ignore").astype(object)


def _days(dates: "pd.Series") -> "pd.Series":
    import pandas as pd

    epoch = pd.Timestamp("1970-01-01", tz=dates.dt.tz)
    return ((dates - epoch) / pd.Timedelta(days=1)).astype(np.float64)


def _target_values(target: "pd.Series") -> np.ndarray:
    """The target as booleans, float64 numbers, or words with None for missing."""
    if target.dtype.kind == "b":
        return target.to_numpy(bool)
    numbers = _numbers(target)
    if numbers is not None:
        return numbers.to_numpy()
    words = _words(target)
    return words.where(words.notna(), None).to_numpy(object)


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = [file.readline().rstrip("\r\n") for _ in range(2)]
        # The separator that cuts the header into most columns, so that semicolons or tabs in a .csv do no harm.
        widths = {mark: len(next(csv.reader(head[:1], delimiter=mark), [])) for mark in ",;\t"}
        separator = max(widths, key=lambda mark: widths[mark])
        return pd.read_csv(
            path,
            sep=separator,
            decimal="," if separator == ";" and _DECIMAL_COMMA.search(head[1]) else ".",
            encoding="utf-8-sig",
            skipinitialspace=True,
            na_values=["?"],
            low_memory=False,
        )
    except pd.errors.EmptyDataError:
        raise BadInput(f"{path} is empty: a header line and at least {targets.MIN_ROWS} rows are needed") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not text in UTF-8: save it as CSV with UTF-8 encoding") from None
    except (OSError, ValueError) as error:  # pandas' and Arrow's parser errors are ValueErrors
        reason = " ".join(str(error).split())
        raise BadInput(f"{path} cannot be read as a {path.suffix[1:]} table: {reason}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
