"""What a measurement asks of its samples."""

from __future__ import annotations

from torch import Tensor


def refuse_gaps(owner: str, **samples: Tensor) -> None:
    """Refuse NaN and infinity: one such row would spoil a training, and leave a number that nobody doubts.

    Raises:
        ValueError: with the name of what holds them.
    """
    for name, rows in samples.items():
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{owner}: {name} holds NaN or infinite values; leave those rows out")
