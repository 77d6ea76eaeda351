"""The three figures of the report.

Every figure exists in two widths, so that its letters stay legible on a phone; the page shows one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from wellposed.workbench.report.canvas import NARROW, WIDE, C, Canvas, dot, shorten, style
from wellposed.workbench.report.words import EARLY_STOPPING, VERDICTS, Document, Numbers, Row, dig, early_stop, ranked

__all__ = ["NARROW", "WIDE", "costed", "curve_rows", "frontier", "gain_against_cost", "has_gain", "learning_curves",
           "ranking", "style"]  # fmt: skip

TIME_TICKS = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 50, 100)
LOOKS: tuple[tuple[str, Any], ...] = (  # tone and dashes of the three best and of the worst
    ("better", "-"), ("tied", (0, (6, 2))), ("extra", (0, (2, 1.5))), ("worse", (0, (6, 2, 1.5, 2))),
)  # fmt: skip
Box = tuple[float, float, float, float]  # centre, width, height in pixels


def has_gain(document: Document) -> list[Row]:
    return [row for row in ranked(document) if row["gain"] is not None]


def ranking(document: Document, width: int) -> str:
    """Paired gain with its 95 % interval, a line a row, the seeds as faint dots behind."""
    rows = has_gain(document)
    numbers = Numbers(document, minus="−")
    pitch = 25 if width == WIDE else 23
    canvas = Canvas(width, 62 + pitch * len(rows))
    left, right = (210, 64) if canvas.wide else (118, 44)
    axes = canvas.axes(left, 8, right, 54)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8 if canvas.wide else 4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(axis="x", color=C["rule"], lw=1)
    axes.axvline(0, color=C["muted"], lw=1.2, zorder=1)
    unit = "percentage points" if numbers.points else document["metric"]["name"]
    axes.set_xlabel(f"gain over the baseline, {unit}", fontsize=canvas.font, color=C["muted"], labelpad=10)

    letters = int(left / (0.54 * canvas.font))
    margin = axes.get_yaxis_transform()
    for y, row in enumerate(rows):
        gain, verdict = row["gain"], VERDICTS[row["verdict"]]
        color = C[verdict.tone]
        seeds = row["gains"] or []
        axes.plot(seeds, [y] * len(seeds), "o", ms=4.5, mfc=color, mec="none", alpha=0.3, zorder=2)
        if row["interval"]:
            axes.plot(row["interval"], [y, y], color=color, lw=2.2, solid_capstyle="round", zorder=4)
        dot(axes, row, gain, y, 8.5 if canvas.wide else 7.5)
        weight = "bold" if verdict.tone in ("better", "tied", "worth") else "normal"
        axes.annotate(
            shorten(row["label"], letters), (0, y), (-10, 0), margin, "offset points", ha="right", va="center",
            fontsize=canvas.font, color=C["ink"],
        )  # fmt: skip
        axes.annotate(
            numbers.gain(gain), (1, y), (right - 2, 0), margin, "offset points", ha="right", va="center",
            fontsize=canvas.font, color=C["ink"], weight=weight,
        )  # fmt: skip
        if row["id"] == EARLY_STOPPING:
            axes.axvline(gain, color=C["reference"], lw=1.6, ls=(0, (5, 3)), zorder=1)
    return canvas.markup("ranking")


def costed(document: Document) -> list[Row]:
    """The rows of the cost figure; what the race dropped has no confirmed gain and takes no part."""
    return [row for row in has_gain(document) if dig(row, "cost", "time") and row["verdict"] != "dropped"]


def frontier(rows: Sequence[Row]) -> set[str]:
    """Ids of the rows for which nothing is both cheaper and better (the Pareto front of time and gain)."""
    best, front = -math.inf, set()
    for row in sorted(rows, key=lambda row: (row["cost"]["time"], -row["gain"])):
        if row["gain"] > best:
            best = row["gain"]
            front.add(row["id"])
    return front


def gain_against_cost(document: Document, width: int) -> str:
    """Gain against the time of a step, in multiples of the baseline's; rows that are beaten in both are grey."""
    rows = costed(document)
    front = frontier(rows)
    canvas = Canvas(width, 430 if width == WIDE else 360)
    axes = canvas.axes(52 if canvas.wide else 34, 14, 24 if canvas.wide else 10, 54)
    times = [row["cost"]["time"] for row in rows]
    low, high = min([*times, 1.0]) / 1.13, max([*times, 1.5]) * 1.12
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [tick for tick in TIME_TICKS if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticklabels([f"{tick:g}×" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.margins(y=0.09)
    axes.grid(color=C["rule"], lw=1)
    axes.axhline(0, color=C["muted"], lw=1.2, zorder=1)
    axes.set_xlabel("time of a training step, baseline = 1×", fontsize=canvas.font, color=C["muted"], labelpad=10)
    axes.annotate(
        f"gain, {'points' if Numbers(document).points else document['metric']['name']}", (0, 1), (0, 8),
        "axes fraction", "offset points", fontsize=canvas.font, color=C["muted"], va="center",
    )  # fmt: skip

    steps = sorted((row["cost"]["time"], row["gain"]) for row in rows if row["id"] in front)
    steps += [(high, gain) for _, gain in steps[-1:]]
    x, y = zip(*steps, strict=True)
    axes.step(x, y, where="post", color=C["better"], lw=1.4, alpha=0.55, zorder=2)

    noted = [row for row in rows if row["id"] in front or row["id"] == EARLY_STOPPING or row.get("tie_group")]
    for row in rows:
        place = row["cost"]["time"], row["gain"]
        grey = row not in noted
        dot(axes, row, *place, 9, tone="muted" if grey else None, alpha=0.75 if grey else 1.0)
        if row.get("tie_group"):
            axes.plot(*place, "o", ms=18, mfc="none", mec=C["tied"], mew=1.6, zorder=4, clip_on=False)

    axes.autoscale_view()  # the limits must be final before points are turned into pixels
    pixels = {row["id"]: tuple(axes.transData.transform((row["cost"]["time"], row["gain"]))) for row in rows}
    boxes: list[Box] = [(*pixels[row["id"]], 12.0, 12.0) for row in rows]
    for row in [*noted, *(row for row in rows if row not in noted)]:  # the important ones choose their place first
        name = shorten(row["label"], 24 if canvas.wide else 16)
        size = canvas.text_width(name), canvas.font + 2
        spot = free_spot(pixels[row["id"]], size, 13 if row.get("tie_group") else 8, canvas, boxes)
        if spot is not None:  # else there is no room; the numbers are in the table below the figure
            dx, dy, align = spot
            axes.annotate(
                name, (row["cost"]["time"], row["gain"]), (dx, dy), "data", "offset points", ha=align, va="center",
                fontsize=canvas.font - 1, color=C["ink" if row in noted else "muted"],
                weight="bold" if row["id"] in front else "normal",
            )  # fmt: skip
    return canvas.markup("cost")


def free_spot(
    point: tuple[float, float], size: tuple[float, float], gap: float, canvas: Canvas, boxes: list[Box]
) -> tuple[float, float, str] | None:
    """Where a label of this size may stand: offset from its point in pixels, and how it is aligned there.

    `boxes` are the places in use; the new one is added.
    """
    width, height = size
    up = gap + height / 2
    for dx, dy, align in (
        (gap, 0.0, "left"), (-gap, 0.0, "right"), (0.0, up, "center"), (0.0, -up, "center"),
        (gap, up / 1.6, "left"), (gap, -up / 1.6, "left"),
    ):  # fmt: skip
        shift = {"left": width / 2, "right": -width / 2, "center": 0.0}[align]
        x, y = point[0] + dx + shift, point[1] + dy
        inside = width / 2 < x < canvas.width - width / 2 and 54 + height < y < canvas.height - 24
        if inside and not any(abs(x - u) < (width + w) / 2 and abs(y - v) < (height + h) / 2 for u, v, w, h in boxes):
            boxes.append((x, y, width, height))
            return dx, dy, align
    return None


def curve_rows(document: Document, best: int = 3) -> list[Row]:
    """Whose learning curves are shown: the best rows and the worst (the baseline is always there)."""
    rows = [
        row for row in has_gain(document)
        if dig(row, "curves", "epoch") and row["id"] != EARLY_STOPPING and row["verdict"] != "dropped"
    ]  # fmt: skip
    return rows if len(rows) <= best + 1 else [*rows[:best], rows[-1]]


def learning_curves(document: Document, width: int) -> str:
    """The metric over the epochs on validation and training data, mean over seeds."""
    canvas = Canvas(width, 400 if width == WIDE else 620)
    series = [
        (shorten(row["label"], 18 if canvas.wide else 14), row["curves"], *look)
        for row, look in zip(curve_rows(document), LOOKS, strict=False)
    ]
    plain = document["baseline"].get("curves")
    if dig(plain, "epoch"):
        series.append(("baseline", plain, "ink", "-"))
    room = max(canvas.text_width(name) for name, *_ in series) + 12
    left = 40 if canvas.wide else 32
    if canvas.wide:
        panel = (canvas.width - 2 * left - 2 * room - 12) / 2
        places = [(left, 40, canvas.width - left - panel, 54), (canvas.width - room - panel, 40, room, 54)]
    else:
        places = [(left, 36, room, 358), (left, 346, room, 54)]
    for place, part, title in zip(
        places, ("validation", "train"), ("on validation data", "on the training data"), strict=True
    ):
        axes = canvas.axes(*place)
        axes.set_title(title, loc="left", fontsize=canvas.font, color=C["ink"], weight="bold", pad=12)
        axes.grid(color=C["rule"], lw=1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("epoch", fontsize=canvas.font, color=C["muted"], labelpad=8)
        ends = []
        for name, curves, tone, dash in series:
            points = known(curves, part)
            if points:
                axes.plot(*zip(*points, strict=True), color=C[tone], ls=dash, lw=2.4 if tone == "ink" else 2.0)
                ends.append((points[-1][1], name, tone))
        if part == "validation":
            mark_early_stop(document, canvas, axes)
        label_ends(canvas, axes, ends)
    return canvas.markup("curves")


def known(curves: dict[str, Any], part: str) -> list[tuple[float, float]]:
    """(epoch, metric) where there is a number."""
    pairs = zip(curves["epoch"], curves[part] or [], strict=False)
    return [(epoch, value) for epoch, value in pairs if value is not None]


def mark_early_stop(document: Document, canvas: Canvas, axes: Axes) -> None:
    """Where early stopping ends the baseline, on average over the seeds."""
    epoch = dig(early_stop(document), "selected", "epoch")
    plain = document["baseline"].get("curves")
    points = known(plain, "validation") if plain and epoch is not None else []
    if not points:
        return
    nearest = min(points, key=lambda point: abs(point[0] - epoch))
    axes.axvline(nearest[0], color=C["reference"], lw=1.2, ls=(0, (5, 3)), zorder=1)
    axes.plot(*nearest, "o", ms=9, mfc=C["paper"], mec=C["reference"], mew=2.2, zorder=6)
    axes.annotate(
        "early stopping", (nearest[0], 0), (6, 8), axes.get_xaxis_transform(), "offset points",
        fontsize=canvas.font - 1, color=C["ink"],
    )  # fmt: skip


def label_ends(canvas: Canvas, axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of the lines (value, name, tone), moved apart where they would overlap."""
    axes.margins(y=0.1)
    axes.autoscale_view()  # the limits must be final before points are turned into pixels
    heights: list[float] = []
    for value, *_ in sorted(ends):
        y = float(axes.transData.transform((0, value))[1])
        heights.append(max(y, heights[-1] + canvas.font + 3) if heights else y)
    shift = max([0.0, *(y - axes.bbox.y1 for y in heights)])
    for (_, name, tone), y in zip(sorted(ends), heights, strict=True):
        axes.annotate(
            name, (axes.bbox.x1, y - shift), (6, 0), "figure pixels", "offset points", va="center",
            fontsize=canvas.font - 1, color=C[tone], weight="bold", annotation_clip=False,
        )  # fmt: skip
