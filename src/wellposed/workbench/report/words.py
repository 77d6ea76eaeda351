"""How a results document is put into words: order of the rows, marks of the verdicts, numbers.

The terminal table and the HTML report share this module, so they cannot disagree.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Document = dict[str, Any]
Row = dict[str, Any]

EARLY_STOPPING = "early-stopping"


class Verdict(NamedTuple):
    tone: str  # the colour's name in page.css
    marker: str  # matplotlib's name of the shape
    path: str  # the same shape as SVG path data in a box from -6 to 6
    filled: bool
    meaning: str


_ROUND = "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"
VERDICTS = {
    "better": Verdict("better", "o", _ROUND, True, "beats the baseline; the joint test over all rows says so at 5 %"),
    "worth it": Verdict(
        "worth", "^", "M0 -5L5 4.5L-5 4.5z", True, "beats the baseline by more than the gain asked for"
    ),
    "tied": Verdict("tied", "D", "M0 -5.5L5.5 0L0 5.5L-5.5 0z", True, "cannot be told apart from the best row"),
    "equivalent": Verdict(
        "equal", "s", "M-4 -4H4V4H-4z", False, "differs from the baseline by less than what is worth having"
    ),
    "undecided": Verdict("muted", "o", _ROUND, False, "these seeds cannot tell it from the baseline"),
    "worse": Verdict("worse", "v", "M0 5L5 -4.5L-5 -4.5z", True, "falls below the baseline"),
    "reference": Verdict(
        "reference",
        "|",
        "M0 -5.5V5.5",
        False,
        "the baseline, stopped at the epoch that validation data chose",
    ),
    "dropped": Verdict(
        "muted", "x", "M-4 -4L4 4M4 -4L-4 4", False, "left the race early; gain from the race, not confirmed"
    ),
    "failed": Verdict("worse", "x", "M-4 -4L4 4M4 -4L-4 4", False, "did not finish"),
    "not applicable": Verdict("muted", "_", "M-5 0H5", False, "needs something this task does not have"),
}
_LAST = {"dropped": 1, "failed": 2, "not applicable": 3}


def dig(value: Any, *keys: str) -> Any:
    """`value[keys[0]][keys[1]]...`, or None as soon as something on the way is missing."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def ranked(document: Document) -> list[Row]:
    """The rows by gain, best first; then what the race dropped, what failed and what does not apply."""

    def place(row: Row) -> tuple[int, float, str]:
        gain = row["gain"]
        return _LAST.get(row["verdict"], 0), math.inf if gain is None else -gain, row["id"]

    return sorted(document["rows"], key=place)


def ties(document: Document) -> list[Row]:
    """The tie group of the winner, cheapest first; empty when the winner stands alone."""
    group = [row for row in ranked(document) if row.get("tie_group")]
    return sorted(group, key=lambda row: dig(row, "cost", "time") or math.inf) if len(group) > 1 else []


def early_stop(document: Document) -> Row | None:
    return next((row for row in document["rows"] if row["id"] == EARLY_STOPPING), None)


def unmeasured(document: Document) -> list[tuple[str, str, str]]:
    """(label, verdict, reason) of what failed and of what does not apply, in rows or already in the plan."""
    rows = [row for row in ranked(document) if row["verdict"] in ("failed", "not applicable")]
    known = {row["id"] for row in rows}
    planned = [out for out in document["plan"]["not_applicable"] if out["id"] not in known]
    return [(row["label"], row["verdict"], row["why"]) for row in rows] + [
        (out["id"], "not applicable", out["why"]) for out in planned
    ]


def significant(row: Row) -> bool:
    """Better than the baseline at 5 % in the joint test over all rows."""
    return row["p"] is not None and row["p"] <= 0.05 and (row["gain"] or 0) > 0


def printable(text: Any) -> str:
    """One line without control characters, whatever a name or a message contains."""
    return "".join(c if c.isprintable() else " " for c in str(text))


class Numbers:
    """Writes numbers with the precision that the document's intervals deserve.

    Percentages and points have one decimal; for other metrics three digits of the widest interval are kept.
    """

    def __init__(self, document: Document, minus: str = "-") -> None:
        self.minus = minus
        self.points = document["metric"]["unit"] == "points"
        self.unit = " points" if self.points else ""
        widths = [high - low for row in document["rows"] if row["interval"] for low, high in [row["interval"]]]
        widest = max(widths, default=0.0)
        self.decimals = 1 if self.points else min(6, max(0, 2 - math.floor(math.log10(widest)))) if widest else 3

    def _sign(self, text: str) -> str:
        return text.replace("-", self.minus)

    def value(self, value: float | None, decimals: int | None = None) -> str:
        return "" if value is None else self._sign(f"{value:.{self.decimals if decimals is None else decimals}f}")

    def gain(self, gain: float | None) -> str:
        return "" if gain is None else self._sign(f"{gain:+.{self.decimals}f}")

    def interval(self, interval: list[float] | None) -> str:
        return "" if not interval else f"[{self.gain(interval[0])}, {self.gain(interval[1])}]"

    def ratio(self, ratio: float | None, sign: str = "x") -> str:
        return "" if ratio is None else f"{ratio:.2f}{sign}" if ratio < 10 else f"{ratio:.0f}{sign}"

    def p(self, p: float | None) -> str:
        return "" if p is None else f"{p:.3f}" if p >= 0.001 else "<.001"

    def metric(self, name: str, value: float | None) -> str:
        """A value of a side metric: percentages with one decimal, everything else with two or three digits."""
        if value is None:
            return ""
        return self._sign(
            f"{value:.1f}"
            if name.endswith(("accuracy", "fitted_wrong", "ece"))
            else f"{value:.3g}"
            if value >= 10
            else f"{value:.2f}"
        )


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
