"""What every source of data is turned into: `Data`, and the `Split` that one seed draws from it."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import BadInput
from . import corruptions, features, rows

if TYPE_CHECKING:
    import pandas as pd

Task = Literal["classification", "regression", "language"]
Kind = Literal["tabular", "image", "text"]

RESAMPLED_BELOW = 50_000
"""Below this many rows a seed draws its own split; from here on the split is fixed, because resampling it
would cost time and change little."""

# One independent random stream for each thing a seed decides: adding label noise must not move the split.
_ROWS, _LABELS, _CORRUPTION = range(3)


@dataclass(frozen=True)
class Split:
    """Training, validation and test tensors of one seed.

    `x_*` are float32: (N, features), or (N, channels, height, width) for images; for language they are int64
    character ids (N, length). `y_*` are int64 classes (N,); int64 next-character ids (N, length); or float32
    values (N,) in standardised units, `value = y * y_scale + y_mean` being the user's own unit.
    `y_train` and `y_val` carry the label noise that was asked for, `y_train_clean` and `y_test` never do.
    """

    x_train: Tensor
    y_train: Tensor
    y_train_clean: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    y_mean: float = 0.0
    y_scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory, not yet split.

    `x` is a table (pandas, float64 columns with NaN for missing and text columns), an array of images
    (n, channels, height, width), of flat images (n, pixels; `image_shape` remembers their form) or of
    character ids (n, length). `y` is int64 class indices or character ids, or float64 values in the user's
    unit. `classes` names the classes (for language: the characters) of the whole data set, so that a class
    absent from one training part keeps its place.
    """

    name: str
    task: Task
    kind: Kind
    description: str
    x: "np.ndarray | pd.DataFrame"
    y: np.ndarray
    classes: tuple[str, ...] | None = None
    warnings: list[str] = field(default_factory=list)
    image_shape: tuple[int, int, int] | None = None
    standardize: bool = True
    """False leaves pixel values as they are, already in [0, 1]."""
    held_out: int = 0
    """How many of the last rows are a test set of the source's own, the same for every seed."""
    test_rows: int = 2000
    """The most rows a test part gets when the training size is asked for."""
    dropped_rows: int = 0
    """Rows of the source that were left out because they hold no feature at all."""

    @property
    def n(self) -> int:
        """Number of rows (images, text windows)."""
        return len(self.y)

    @property
    def features(self) -> int:
        """Number of values in one row as the source holds it: columns, pixels or characters."""
        return int(np.prod(self.x.shape[1:]))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the contents in hexadecimal, the same in every process."""
        digest = hashlib.sha256()
        schema = (self.task, self.kind, self.classes, self.image_shape, self.standardize, self.held_out)
        digest.update(repr(schema).encode())
        x = self.x
        if not isinstance(x, np.ndarray):
            import pandas as pd

            digest.update(repr([(str(name), kind.kind) for name, kind in x.dtypes.items()]).encode())
            x = pd.util.hash_pandas_object(x, index=False).to_numpy()
        for array in (x, self.y):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def split(
        self,
        seed: int,
        train_size: int | None = None,
        label_noise: float = 0.0,
        corrupt: str | None = None,
    ) -> Split:
        """Draw the training, validation and test parts of `seed`; a pure function of data and arguments.

        Without `train_size` the parts are 60, 20 and 20 % of the rows; with it, `train_size` rows, a fifth
        as many (at least 20) for validation, and up to `test_rows` of the others for the test. Classes keep
        their shares in every part. Scaling and imputation are fitted on the training part alone.

        `label_noise`, in [0, 1): each training and validation label becomes a different class, drawn
        uniformly, with this probability; in regression it is the standard deviation of added Gaussian noise
        in units of the target's own. `corrupt`: "NAME[:SEVERITY]" shifts the test inputs only; the names are
        in `corruptions`.

        Raises `BadInput` for a negative seed, a size the data cannot give, noise outside its range or an
        unknown corruption.
        """
        if seed < 0:
            raise BadInput(f"seed {seed} is negative: seeds are 0, 1, 2, ...")
        if not 0 <= label_noise < 1:
            raise BadInput(f"label noise {label_noise:g} is outside [0, 1): 0.4 makes 40 % of labels wrong")
        if label_noise and self.task == "language":
            raise BadInput(f"label noise is for classes and values: {self.name} is text, leave it at 0")
        shift = corruptions.parse(corrupt, self.kind) if corrupt is not None else None

        parts = rows.partition(
            self.n,
            np.random.default_rng([seed if self.n < RESAMPLED_BELOW else 0, _ROWS]),
            train_size=train_size,
            strata=self.y if self.task == "classification" else None,
            held_out=self.held_out,
            test_rows=self.test_rows,
        )
        if shift is None:
            x_train, x_val, x_test = features.prepare(self, parts)
        else:
            stream = np.random.default_rng([seed, _CORRUPTION])
            x_train, x_val, x_test = features.prepare(self, parts, lambda x: shift(x, stream))

        y_train, y_val, y_test = (self.y[part] for part in parts)
        stream = np.random.default_rng([seed, _LABELS])
        if self.task == "regression":
            mean, scale = float(y_train.mean()), float(y_train.std()) or 1.0
            y_train, y_val, y_test = (((y - mean) / scale).astype(np.float32) for y in (y_train, y_val, y_test))
            noisy = [y + np.float32(label_noise) * stream.standard_normal(len(y), np.float32) for y in (y_train, y_val)]
        else:
            mean, scale = 0.0, 1.0
            classes = len(self.classes or ())
            noisy = [wrong_labels(y, label_noise, classes, stream) for y in (y_train, y_val)]
        return Split(
            x_train,
            torch.from_numpy(noisy[0]),
            torch.from_numpy(y_train),
            x_val,
            torch.from_numpy(noisy[1]),
            x_test,
            torch.from_numpy(y_test),
            mean,
            scale,
        )


def wrong_labels(y: np.ndarray, probability: float, classes: int, stream: np.random.Generator) -> np.ndarray:
    """Labels `y` (n,) in which each is, with this probability, a different class drawn uniformly.

    The same draws decide at every probability, so the wrong labels at 0.2 are among those at 0.4.
    """
    chosen = stream.random(y.shape) < probability
    moved = (y + stream.integers(1, classes, y.shape)) % classes
    return np.where(chosen, moved, y)
