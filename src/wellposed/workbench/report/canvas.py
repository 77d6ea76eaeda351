"""Drawing with matplotlib into SVG that takes its colours and fonts from the page.

matplotlib is given stand-in colours, which are replaced by CSS variables: the same drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wellposed.workbench.report.words import VERDICTS, Row, printable

TONES = ("ink", "muted", "rule", "paper", "better", "worth", "tied", "equal", "worse", "reference", "extra")
C = {tone: f"#0000{i:02x}" for i, tone in enumerate(TONES, start=1)}
WIDE, NARROW = 880, 330  # pixels


class Canvas:
    """A figure of `width` pixels whose text has the size `font`, and what is needed to turn it into markup."""

    def __init__(self, width: int, height: float) -> None:
        self.width, self.height = width, height
        self.wide = width == WIDE
        self.font = 13.0 if self.wide else 11.0
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes with these margins in pixels."""
        w, h = self.width, self.height
        axes = self.figure.add_axes((left / w, bottom / h, (w - left - right) / w, (h - top - bottom) / h))
        axes.set_frame_on(False)
        axes.tick_params(length=0, labelsize=self.font - 1, labelcolor=C["muted"], pad=6)
        axes.set_axisbelow(True)
        return axes

    def text_width(self, text: str) -> float:
        return 0.55 * self.font * len(text)  # an average letter of the fonts in use; exact widths are the browser's

    def markup(self, name: str) -> str:
        """The drawing as an `<svg>` element; title and description are the page's."""
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # Letters that matplotlib's font lacks are no problem here: the browser draws the text.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            matplotlib.rcParams["svg.hashsalt"] = f"{name}-{self.width}"
            metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
        return themed(buffer.getvalue())


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.rc_context({"svg.fonttype": "none", "text.parse_math": False, "path.simplify": False}):
        yield


def themed(svg: str) -> str:
    """matplotlib's SVG file as an element of the page: no prologue, no fonts, no ids but those referred to."""
    svg = svg[svg.index("<svg") :]
    size = re.search(r'viewBox="([^"]*)"', svg)
    assert size is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="{size[1]}">', svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("xlink:href", "href")

    def tag(match: re.Match[str]) -> str:
        text = re.sub(r"(\.\d\d)\d+", r"\1", match[0])
        text = re.sub(r"font-family: [^;\"]*;? ?|transform=\"rotate\(-?0 [^\"]*\"", "", text)
        for tone, color in C.items():
            text = text.replace(color, f"var(--{tone})")
        return re.sub(r"\s+", " ", text)

    return re.sub(r">\s+<", "><", re.sub(r"<[^>]*>", tag, svg))


def shorten(text: str, letters: int) -> str:
    text = printable(text)
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"


def dot(axes: Axes, row: Row, x: float, y: float, size: float, tone: str | None = None, **more: Any) -> None:
    """The row's mark: colour and shape say the verdict, so neither is needed alone."""
    verdict = VERDICTS[row["verdict"]]
    color = C[tone or verdict.tone]
    face = color if verdict.filled else C["paper"]
    edge = color if not verdict.filled or verdict.marker in "x_|" else C["paper"]
    axes.plot([x], [y], verdict.marker, ms=size, mfc=face, mec=edge, mew=1.4, zorder=5, clip_on=False, **more)
