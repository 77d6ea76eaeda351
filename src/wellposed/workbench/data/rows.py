"""Which rows are for training, for validation and for the test."""

import numpy as np

from ..errors import BadInput

MIN_VALIDATION = 20
MIN_REST = 10

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def partition(
    n: int,
    stream: np.random.Generator,
    *,
    train_size: int | None,
    strata: np.ndarray | None,
    held_out: int,
    test_rows: int,
) -> Parts:
    """Indices of the training, validation and test rows among `n`.

    They are the beginning, the next rows and the end of one random permutation, so that a larger
    `train_size` keeps the rows of a smaller one. `strata` (n,) holds class indices to be kept in proportion.
    The last `held_out` rows, if any, are the test part whatever the seed.

    Raises `BadInput` when `train_size` is not positive or leaves too few rows for the other parts.
    """
    pool = n - held_out
    order = stratified(strata[:pool], stream) if strata is not None else stream.permutation(pool)
    if train_size is None:
        validation = pool // 5
        test = 0 if held_out else pool // 5
        train = pool - validation - test
    else:
        if train_size < 2:
            raise BadInput(f"training size {train_size} is too small: give at least 2 rows")
        train, rest = train_size, pool - train_size
        if rest < MIN_REST:
            raise BadInput(
                f"training size {train_size} is too large: of {pool} rows {MIN_REST} must remain for "
                f"validation and test, so give at most {pool - MIN_REST}"
            )
        validation = min(max(train // 5, MIN_VALIDATION), rest if held_out else rest // 2)
        test = 0 if held_out else min(test_rows, rest - validation)
    ends = np.arange(pool, n) if held_out else order[pool - test :]
    return order[:train], order[train : train + validation], ends


def stratified(strata: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """A random permutation of the rows every stretch of which holds the classes in nearly their shares.

    The r-th row (from 0) of a class with m rows, shuffled, goes to the place (r + u) / m of the way, u uniform
    in [0, 1): any stretch then holds each class's share to within about two rows, and a class of a single
    row may fall anywhere. Within a class every order is equally likely.
    """
    shuffled = stream.permutation(len(strata))
    by_class = shuffled[np.argsort(strata[shuffled], kind="stable")]
    sizes = np.bincount(strata)
    rank = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = (rank + stream.random(len(strata))) / np.repeat(sizes, sizes)
    return by_class[np.argsort(place)]
