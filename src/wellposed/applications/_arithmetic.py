"""Arithmetic coding with integers: laws as counts that sum to a power of two, so that two ends agree to the bit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

TOTAL_BITS = 30
TOTAL = 1 << TOTAL_BITS
"""What the counts of a law sum to. A symbol has at least one, so it costs at most 30 bits."""
WIDTH = 62  # of the coder's interval; cutting it by counts loses 2^-30 of a symbol's share
FULL, HALF, QUARTER = (1 << WIDTH) - 1, 1 << (WIDTH - 1), 1 << (WIDTH - 2)


def as_law(law: ArrayLike) -> tuple[NDArray[np.float64], float]:
    """Probabilities (V,) and their sum, 1 up to 1e-6.

    Raises:
        ValueError: for what is no law, or too many symbols.
    """
    p = np.asarray(law, dtype=np.float64)
    total = math.fsum(p.flat)  # rounded once, in whatever order a machine would add
    if p.ndim != 1 or not 0 < len(p) <= TOTAL // 2 or not (p >= 0).all() or not abs(total - 1) < 1e-6:
        raise ValueError(f"a law is probabilities (V,) that sum to 1; got shape {p.shape} with sum {total:g}")
    return p, total


def integer_law(law: ArrayLike) -> NDArray[np.int64]:
    """Counts of the symbols, each at least 1, that sum to ``TOTAL``: a law, quantised."""
    p, total = as_law(law)
    counts = np.floor(p * ((TOTAL - len(p)) / total)).astype(np.int64) + 1
    counts[counts.argmax()] += TOTAL - counts.sum()  # a few units of 2^-30 that rounding left
    return counts


class Encoder:
    """Cuts an interval down to the symbols' shares and writes the bits that its ends have in common."""

    def __init__(self) -> None:
        self.low, self.high, self.waiting = 0, FULL, 0
        self.bits: list[int] = []

    def encode(self, counts: NDArray[np.int64], symbol: int) -> None:
        """One symbol under a law."""
        before = int(counts[:symbol].sum())
        span = self.high - self.low + 1
        self.high = self.low + (span * (before + int(counts[symbol])) >> TOTAL_BITS) - 1
        self.low += span * before >> TOTAL_BITS
        while True:
            if self.high < HALF:
                self._write(0)
            elif self.low >= HALF:
                self._write(1)
                self.low, self.high = self.low - HALF, self.high - HALF
            elif self.low >= QUARTER and self.high < HALF + QUARTER:
                self.waiting += 1  # the ends straddle the middle closely: the next bit decides this one, too
                self.low, self.high = self.low - QUARTER, self.high - QUARTER
            else:
                return
            self.low, self.high = 2 * self.low, 2 * self.high + 1

    def _write(self, bit: int) -> None:
        self.bits += [bit] + [1 - bit] * self.waiting
        self.waiting = 0

    def finish(self) -> bytes:
        """All bits, with two more that fix a point of the interval, filled up to bytes with zeros."""
        self.waiting += 1
        self._write(int(self.low >= QUARTER))
        return np.packbits(np.array(self.bits, dtype=np.uint8)).tobytes()


class Decoder:
    """Reads what an ``Encoder`` wrote; behind the end it reads zeros."""

    def __init__(self, data: bytes) -> None:
        self.bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8)).tolist()
        self.low, self.high, self.at, self.value = 0, FULL, 0, 0
        for _ in range(WIDTH):
            self._read()

    def _read(self) -> None:
        self.value = 2 * self.value + (self.bits[self.at] if self.at < len(self.bits) else 0)
        self.at += 1

    def decode(self, counts: NDArray[np.int64]) -> int:
        """The next symbol, given the law it was encoded under."""
        ends = counts.cumsum()
        span = self.high - self.low + 1
        place = ((self.value - self.low + 1 << TOTAL_BITS) - 1) // span
        symbol = int(np.searchsorted(ends, place, side="right"))
        after = int(ends[symbol])
        self.high = self.low + (span * after >> TOTAL_BITS) - 1
        self.low += span * (after - int(counts[symbol])) >> TOTAL_BITS
        while True:
            if self.low >= HALF:
                shift = HALF
            elif self.high < HALF:
                shift = 0
            elif self.low >= QUARTER and self.high < HALF + QUARTER:
                shift = QUARTER
            else:
                return symbol
            self.low, self.high = 2 * (self.low - shift), 2 * (self.high - shift) + 1
            self.value -= shift
            self._read()
