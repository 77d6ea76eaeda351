"""One small drawing for every record of evidence, as SVG.

Colours are CSS variables of the page, text is text, and the same record gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from ...workbench.report.canvas import C, Canvas, shorten, style
from ..evidence import in_words

Evidence = dict[str, Any]
WIDTH = 360  # pixels; letters stay legible when a phone makes it smaller
TONE = {"PASS": "better", "NULL": "equal", "FAIL": "worse"}
COLORS = {  # of drawings that stand alone in a file, light and dark; those on a page take the page's
    "ink": ("#1e2227", "#e7e5df"), "muted": ("#5b626b", "#a2a9b1"), "rule": ("#e3e0d8", "#2d3339"),
    "paper": ("#fdfcf9", "#14171a"), "better": ("#007d59", "#35c49a"), "worth": ("#2a7fb5", "#93d3f7"),
    "tied": ("#0067a3", "#62b3e6"), "equal": ("#6b6f76", "#a5abb2"), "worse": ("#b64a00", "#f28d4c"),
    "reference": ("#a86c00", "#efb52f"), "extra": ("#a0497b", "#e49cc5"),
}  # fmt: skip


def plot(found: Evidence) -> str:
    """The drawing of a record as an ``<svg>`` element with title and description."""
    draw: Callable[[Evidence], Canvas] = {"paired": paired, "exact": exact, "curve": curve, "cost": cost}[found["kind"]]
    with style():
        markup = draw(found).markup(found["id"])
    name = f"plot-{found['id']}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" aria-labelledby="{name}-title {name}-desc"'
        f' data-search-exclude="" viewBox="{markup.split(chr(34), 2)[1]}">'
        f'<title id="{name}-title">{escape(found["statement"])}</title>'
        f'<desc id="{name}-desc">{escape(in_words(found))}</desc>'
    )
    return head + markup.partition(">")[2]


def standalone(svg: str) -> str:
    """The drawing as a file of its own, with colours for light and dark."""
    light, dark = (";".join(f"--{tone}:{both[i]}" for tone, both in COLORS.items()) for i in (0, 1))
    rules = f"svg{{{light};font-family:sans-serif}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"
    head, _, rest = svg.partition(">")
    return f"{head}><style>{rules}</style>{rest}\n"


def _canvas(height: float) -> Canvas:
    return Canvas(WIDTH, height)


def _label(axes: Any, canvas: Canvas, text: str, letters: int = 60) -> None:
    axes.set_xlabel(shorten(text, letters), fontsize=canvas.font - 1, color=C["muted"], labelpad=6)


def _ticks(axis: Any, count: int = 4) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))


def paired(found: Evidence) -> Canvas:
    """Left what each seed measured in both arms, right the differences with interval and margin."""
    canvas = _canvas(190)
    left = canvas.axes(44, 22, 196, 30)
    arms = [found["arms"][arm][found["quantity"]] for arm in ("without", "with")]
    tone = C[TONE[found["verdict"]]]
    for pair in zip(*arms, strict=True):
        left.plot([0, 1], pair, "-o", color=C["muted"], ms=3.5, lw=1, alpha=0.65)
    left.plot([0, 1], [sum(arm) / len(arm) for arm in arms], "-o", color=tone, ms=5, lw=2.2)
    left.set_xlim(-0.25, 1.25)
    left.set_xticks([0, 1], ["without", "with"])
    left.grid(axis="y", color=C["rule"], lw=1)
    _ticks(left.yaxis)
    left.set_title(shorten(found["quantity"], 24), loc="left", fontsize=canvas.font - 1, color=C["ink"], pad=8)
    right = canvas.axes(206, 22, 14, 30)
    count = len(found["differences"])
    _judged(right, found, [(i + 1) / (count + 1) for i in range(count)], -0.14)
    right.set_ylim(-0.3, 1.05)
    title = f"how much {found['direction']}"
    right.set_title(title, loc="left", fontsize=canvas.font - 1, color=C["ink"], pad=8)
    right.annotate(
        "margin", (found["margin"], 1.05), (3, -4), "data", "offset points", fontsize=9, va="top", color=C["reference"]
    )
    return canvas


def _judged(axes: Any, found: Evidence, heights: Sequence[float], foot: float) -> None:
    """What was judged: single seeds at their heights, mean and interval at the foot, and the margin."""
    tone = C[TONE[found["verdict"]]]
    axes.axvline(0, color=C["muted"], lw=1.2)
    axes.axvline(found["margin"], color=C["reference"], lw=1.4, ls=(0, (5, 3)))
    axes.plot(found["differences"], heights, "o", ms=4, color=tone, alpha=0.45)
    axes.plot(found["interval"], [foot, foot], color=tone, lw=2.4, solid_capstyle="round")
    axes.plot([found["estimate"]], [foot], "o", ms=7, color=tone)
    axes.set_yticks([])
    axes.margins(x=0.08)
    _ticks(axes.xaxis)


def exact(found: Evidence) -> Canvas:
    """Every error on a logarithmic axis, and the tolerance; errors of 0 stand at the left border."""
    errors: dict[str, list[float]] = found["arms"]["errors"]
    canvas = _canvas(62 + 34 * len(errors))
    axes = canvas.axes(16, 18, 16, 36)
    known = [e for values in errors.values() for e in values if e > 0]
    border = 10 ** math.floor(math.log10(min([*known, found["tolerance"]]) / 10))
    axes.set_xscale("log")
    axes.set_xlim(border / 1.5, 10 * found["tolerance"])
    axes.axvline(found["tolerance"], color=C["reference"], lw=1.4, ls=(0, (5, 3)))
    for row, (name, values) in enumerate(errors.items()):
        inside = [max(e, border) for e in values]
        tone = C["better" if max(values) <= found["tolerance"] else "worse"]
        axes.plot(inside, [row + 0.28] * len(values), "o", ms=5, color=tone, alpha=0.6, clip_on=False)
        axes.annotate(
            shorten(name, 56), (0, row), (0, 0), axes.get_yaxis_transform(), "offset points", va="center",
            fontsize=canvas.font - 1, color=C["ink"],
        )  # fmt: skip
    axes.set_ylim(len(errors) - 0.4, -0.4)
    axes.set_yticks([])
    axes.minorticks_off()
    axes.annotate(
        "tolerance", (found["tolerance"], 1), (0, 4), axes.get_xaxis_transform(), "offset points", ha="right",
        fontsize=9, color=C["reference"],
    )  # fmt: skip
    _powers(axes, border, 10 * found["tolerance"])
    zero = " (0 at the left border)" if any(e == 0 for values in errors.values() for e in values) else ""
    _label(axes, canvas, found["quantity"] + zero)
    return canvas


def _powers(axes: Any, low: float, high: float) -> None:
    """At most five powers of ten as ticks, written as 1e-12: a drawing without a font cannot raise digits."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first) / 4))
    ticks = [10.0**n for n in range(first, last + 1, step)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def curve(found: Evidence) -> Canvas:
    """Every series over the swept variable, seeds faint and the mean strong; below the number that is judged."""
    recorded = found["curve"]
    more = 15 * ((len(recorded["seeds"]) - 1) // 2)  # rows of the legend beyond the first, two series each
    canvas = _canvas(264 + more)
    axes = canvas.axes(48, 22 + more, 14, 118)
    x, tones = recorded["x"], ("tied", "worse", "better", "extra", "reference", "muted")
    dashes = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
    wide = min(x) > 0 and max(x) / min(x) > 30
    for i, (name, seeds) in enumerate(recorded["seeds"].items()):
        color = C[tones[i % len(tones)]]
        for values in seeds:
            axes.plot(x, values, color=color, lw=0.8, alpha=0.3)
        look: dict[str, Any] = {"color": color, "lw": 2.0, "ls": dashes[i % len(dashes)], "label": shorten(name, 26)}
        axes.plot(x, recorded["mean"][name], **look)
    values = [v for seeds in recorded["seeds"].values() for of_seed in seeds for v in of_seed]
    if wide:
        axes.set_xscale("log")
        axes.minorticks_off()
        _powers(axes, min(x), max(x))
    else:
        _ticks(axes.xaxis)
    if min(values) > 0 and max(values) / min(values) > 1000:
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        _ticks(axes.yaxis)
    axes.grid(color=C["rule"], lw=1)
    _label(axes, canvas, recorded["swept"])
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(-0.12, 1.0), ncols=2, frameon=False, fontsize=canvas.font - 1,
        labelcolor=C["ink"], handlelength=1.8, borderaxespad=0, columnspacing=1,
    )  # fmt: skip
    legend.set_in_layout(False)
    strip = canvas.axes(48, 196 + more, 14, 34)
    _judged(strip, found, [0.6] * len(found["differences"]), 0)
    strip.set_ylim(-0.6, 1)
    _label(strip, canvas, f"{found['quantity']}, dashed: margin", 52)
    return canvas


def cost(found: Evidence) -> Canvas:
    """The worst ratio of every quantity as a bar, beside 1 and the tolerance."""
    ratios: dict[str, list[float]] = found["ratios"]
    canvas = _canvas(62 + 34 * len(ratios))
    axes = canvas.axes(16, 18, 30, 36)
    tone = C[TONE[found["verdict"]]]
    for row, (name, values) in enumerate(ratios.items()):
        axes.barh([row + 0.28], [max(values)], height=0.3, color=tone)
        axes.annotate(
            f"{max(values):.3g}×", (max(values), row + 0.28), (4, 0), "data", "offset points", va="center",
            fontsize=canvas.font - 1, color=C["ink"], annotation_clip=False,
        )  # fmt: skip
        axes.annotate(
            shorten(name, 56), (0, row - 0.06), (0, 0), axes.get_yaxis_transform(), "offset points", va="center",
            fontsize=canvas.font - 1, color=C["ink"],
        )  # fmt: skip
    axes.axvline(1, color=C["muted"], lw=1.2)
    axes.axvline(found["tolerance"], color=C["reference"], lw=1.4, ls=(0, (5, 3)))
    axes.set_xlim(0, 1.1 * max([found["tolerance"], 1, *(v for values in ratios.values() for v in values)]))
    axes.set_ylim(len(ratios) - 0.4, -0.4)
    axes.set_yticks([])
    _ticks(axes.xaxis)
    _label(axes, canvas, "with / without; dashed: tolerance")
    return canvas
