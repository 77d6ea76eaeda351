"""From the rows of a `Data` to the tensors a network reads; whatever is estimated comes from training rows."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .rows import Parts

if TYPE_CHECKING:
    import pandas as pd

    from .dataset import Data

Shift = Callable[[Tensor], Tensor]


def prepare(data: "Data", parts: Parts, shift: Shift | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the three parts; `shift` corrupts those of the test.

    A shift sees images as (n, channels, height, width) in [0, 1] and tables in standardised units.
    """
    if not isinstance(data.x, np.ndarray):
        return _table(data.x, parts, shift)
    x_train, x_val, x_test = (torch.from_numpy(data.x[part]) for part in parts)
    if data.kind == "image":
        x_train, x_val, x_test = _unit(x_train), _unit(x_val), _unit(x_test)
        if shift is not None:
            seen = x_test.view(-1, *data.image_shape) if data.image_shape else x_test
            x_test = shift(seen).reshape(x_test.shape)
    if data.kind != "text" and data.standardize:
        over = [0, *range(2, x_train.ndim)]  # all but features or channels
        mean = x_train.mean(over, keepdim=True)
        deviation = x_train.std(over, keepdim=True, correction=0)
        gain = torch.where(deviation > 0, 1 / deviation, 0.0)
        x_train, x_val, x_test = (((x - mean) * gain).float() for x in (x_train, x_val, x_test))
    if data.kind != "image" and shift is not None:
        x_test = shift(x_test)
    return x_train, x_val, x_test


def _unit(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1]: bytes are divided by 255, floats are there already."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _table(frame: "pd.DataFrame", parts: Parts, shift: Shift | None) -> tuple[Tensor, Tensor, Tensor]:
    """Medians, means and deviations come from the training rows; which columns and categories exist, like
    which classes exist, from the whole table, so that every seed has inputs of the same width."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numeric = [name for name in frame if frame[name].dtype.kind == "f"]
    holed = [name for name in numeric if frame[name].isna().any()]
    text = [name for name in frame if frame[name].dtype.kind != "f"]
    levels = [sorted(frame[name].unique()) for name in text]
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    transformer = ColumnTransformer(
        [
            ("numeric", make_pipeline(imputer, StandardScaler()), numeric),
            ("missing", make_pipeline(MissingIndicator(features="all"), StandardScaler()), holed),
            ("text", OneHotEncoder(categories=levels, sparse_output=False, dtype=np.float64), text),
        ]
    )
    train = transformer.fit_transform(frame.iloc[parts[0]])
    # An input that never varied in training has weights that were never trained: it must stay silent later.
    alive = np.ptp(train, axis=0) > 0
    arrays = [train, *(transformer.transform(frame.iloc[part]) for part in parts[1:])]
    x_train, x_val, x_test = (torch.from_numpy((x * alive).astype(np.float32)) for x in arrays)
    return x_train, x_val, x_test if shift is None else shift(x_test)
