"""Arrays and tensors: `.npz` files, and whatever the user's own function returns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import BadInput
from . import target as targets
from .dataset import Data
from .importing import describe, resolve

_EXPECTED = "(x, y) arrays, a data set of (x, y) pairs, or a (train, test) pair of either"


def load_npz(path: Path, task: str | None) -> Data:
    """Read the arrays `x` and `y` of an `.npz` file; pickled objects are refused. See `from_arrays`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [key for key in ("x", "y") if key not in file.files]:
                held = ", ".join(file.files) or "nothing"
                raise BadInput(f"{path} has no array '{missing[0]}': save it with arrays x and y (it holds {held})")
            x, y = file["x"], file["y"]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} cannot be read as an .npz of plain arrays: {describe(error)}") from None
    return from_arrays(path.name, x, y, task)


def load_function(spec: str, task: str | None) -> Data:
    """Call the function that `spec` names, without arguments, and make a `Data` of what it returns.

    It may return (x, y) arrays or tensors, one `torch.utils.data.Dataset` of (x, y) pairs, or a (train, test)
    pair of either; then the test part is that test set for every seed. Everything is read into memory.
    """
    function = resolve(spec, "data")
    try:
        result = function()
    except Exception as error:
        raise BadInput(f"data '{spec}': calling it without arguments fails with {describe(error)}") from error
    whole = _pair(result, spec)
    if whole is not None:
        return from_arrays(spec, *whole, task)
    if not isinstance(result, Sequence) or len(result) != 2:
        raise BadInput(f"data '{spec}' returned {type(result).__name__}: it must return {_EXPECTED}")
    train, test = (_pair(part, spec) for part in result)
    if train is None or test is None:
        kinds = " and ".join(type(part).__name__ for part in result)
        raise BadInput(f"data '{spec}' returned a pair of {kinds}: it must return {_EXPECTED}")
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = f"{train[0].shape[1:]} and {test[0].shape[1:]}"
        raise BadInput(f"data '{spec}': rows of training and test have different shapes, {shapes}")
    x, y = (np.concatenate(pair) for pair in zip(train, test, strict=True))
    return from_arrays(spec, x, y, task, held_out=len(test[1]))


def from_arrays(name: str, x: np.ndarray, y: np.ndarray, task: str | None, *, held_out: int = 0) -> Data:
    """Make a `Data` of numbers `x`, (n, features) or images (n, [channels,] height, width[, channels]), and `y` (n,).

    The last `held_out` rows are a fixed test set. Raises `BadInput` for shapes that do not fit, values that are
    not finite, and whatever `target.encode` refuses.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or x.ndim < 1 or len(x) != len(y):
        raise BadInput(f"{name}: x {x.shape} and y {y.shape} do not fit: one row of x for each value of y is needed")
    if x.dtype.kind not in "biuf":
        raise BadInput(f"{name}: x holds {x.dtype}, but numbers are needed: save words as a CSV instead")
    if x.dtype.kind == "f" and not (finite := np.isfinite(x)).all():
        rows = int((~finite.reshape(len(x), -1).all(1)).sum())
        raise BadInput(f"{name}: x is not finite in {rows} of {len(x)} rows: correct or remove these rows")
    if len(y) - held_out < targets.MIN_ROWS:
        raise BadInput(f"{name} has only {len(y) - held_out} rows to learn from: {targets.MIN_ROWS} are needed")
    if (x == x[:1]).all():
        raise BadInput(f"{name}: all rows of x are the same, so there is nothing to learn from")
    image_shape = None
    if x.ndim > 2:
        x = _pixels(name, x)
        image_shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
    else:
        x = x.reshape(len(x), -1).astype(np.float64)
    encoded = targets.encode(y, task, f"target y of {name}", integers_are_labels=image_shape is not None)
    form = "x".join(map(str, image_shape or x.shape[1:]))
    fixed = f", the last {held_out:,} of them a fixed test set" if held_out else ""
    return Data(
        name=name,
        task=encoded.task,
        kind="image" if image_shape else "tabular",
        description=f"{len(x):,} rows of {form} {'pixels' if image_shape else 'features'}{fixed}; {encoded.why}",
        x=x,
        y=encoded.y,
        classes=encoded.classes,
        warnings=list(encoded.warnings),
        image_shape=image_shape,
        held_out=held_out,
    )


def _pixels(name: str, x: np.ndarray) -> np.ndarray:
    """Images as (n, channels, height, width): uint8 as they are, other numbers brought to [0, 1] all together."""
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] > 4 >= x.shape[3]:
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] > 4:
        raise BadInput(
            f"{name}: x {x.shape} is no table (n, features) and no images (n, height, width), "
            "(n, channels, height, width) or (n, height, width, channels) with up to 4 channels"
        )
    if x.dtype != np.uint8:
        low, high = float(x.min()), float(x.max())
        x = ((x - low) / (high - low)).astype(np.float32)
    return np.ascontiguousarray(x)


def _pair(part: Any, spec: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The arrays x and y of a data set or of an (x, y) pair; None if `part` is neither."""
    if isinstance(part, Dataset):
        if not hasattr(part, "__len__"):
            raise BadInput(f"data '{spec}' returned a data set without a length: one with __len__ is needed")
        try:
            rows = [part[i] for i in range(len(part))]
            xs, ys = zip(*((_array(x), _array(y)) for x, y in rows), strict=True)
            return np.stack(xs), np.stack(ys)
        except Exception as error:  # whatever the user's __getitem__ raises
            raise BadInput(
                f"data '{spec}': its rows must be (x, y) pairs of one shape, but reading them fails with "
                f"{describe(error)}"
            ) from error
    if isinstance(part, Sequence) and len(part) == 2 and all(hasattr(item, "__array__") for item in part):
        return _array(part[0]), _array(part[1])
    return None


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)
