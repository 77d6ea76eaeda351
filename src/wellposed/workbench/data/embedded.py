"""Data sets that are already on every machine: in scikit-learn's wheel and in Python's own library."""

from collections.abc import Callable
from functools import cache

import numpy as np

from ..errors import BadInput
from .dataset import Data

CONTEXT = 48
"""Characters in one window of text."""
CORPUS = 32_000
"""Characters of prose taken: about 19,000 of them train, few enough to be learnt by heart."""


@cache
def digits() -> Data:
    """1,797 scans of handwritten digits, 8x8 (Alpaydin & Kaynak, 1998), flat and in [0, 1]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return Data(
        name="digits",
        task="classification",
        kind="image",
        description=f"{len(y):,} scans of handwritten digits, 8x8 grey pixels in [0, 1]; classification into 10 digits",
        x=(x / 16).astype(np.float32),
        y=y.astype(np.int64),
        classes=tuple("0123456789"),
        image_shape=(1, 8, 8),
        standardize=False,
        test_rows=597,
    )


@cache
def breast_cancer() -> Data:
    """569 tumours, 30 measurements of cell nuclei, benign or malignant (Street, Wolberg & Mangasarian, 1993)."""
    return _sklearn("breast_cancer", "tumours described by measurements of cell nuclei")


@cache
def wine() -> Data:
    """178 Italian wines, 13 chemical measurements, three cultivars (Forina et al., 1991)."""
    return _sklearn("wine", "wines described by chemical measurements")


@cache
def diabetes() -> Data:
    """442 patients, 10 measurements, progression of the disease after a year (Efron et al., 2004)."""
    return _sklearn("diabetes", "patients; the target is the progression of diabetes after one year, 25 to 346")


def _sklearn(name: str, rows: str) -> Data:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    names = bunch.get("target_names")
    classes = None if names is None else tuple(str(label) for label in names)
    kind = "regression" if classes is None else f"classification into {len(classes)} classes ({', '.join(classes)})"
    return Data(
        name=name,
        task="regression" if classes is None else "classification",
        kind="tabular",
        description=f"{len(bunch.data):,} {rows}; {bunch.data.shape[1]} numeric features; {kind}",
        x=bunch.data.astype(np.float64),
        y=bunch.target.to_numpy(np.float64 if classes is None else np.int64),
        classes=classes,
    )


@cache
def text() -> Data:
    """Characters of English prose: the Python reference manual that comes with the interpreter."""
    corpus = _prose()[:CORPUS]
    characters = sorted(set(corpus))
    ids = np.searchsorted(np.array(characters), np.array(list(corpus))).astype(np.int64)
    count = (len(ids) - 1) // CONTEXT
    return Data(
        name="text",
        task="language",
        kind="text",
        description=(
            f"{count} windows of {CONTEXT} characters of English prose from the Python manual; the next one of "
            f"{len(characters)} characters is to be predicted"
        ),
        x=ids[: count * CONTEXT].reshape(count, CONTEXT),
        y=ids[1 : count * CONTEXT + 1].reshape(count, CONTEXT),
        classes=tuple(characters),
    )


def _prose() -> str:
    """Paragraphs of running text, each once: no headings, tables, grammar or program code."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise BadInput("this Python was installed without pydoc_data: choose another data set than text") from None
    kept: dict[str, None] = {}  # topics quote one another; a dict keeps the first of each, in order
    for _, topic in sorted(topics.items()):
        for block in topic.split("\n\n"):
            lines = block.strip("\n").split("\n")
            paragraph = " ".join(block.split())
            flush = all(line[:1].isalpha() for line in lines)
            if flush and len(paragraph) > 120 and paragraph.isascii() and paragraph.endswith((".", ":")):
                kept[paragraph] = None
    return "\n".join(kept)


SOURCES: dict[str, Callable[[], Data]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "wine": wine,
    "diabetes": diabetes,
    "text": text,
}
