"""The report: one HTML file that needs no network and no script."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from wellposed.workbench.report import figures
from wellposed.workbench.report.words import (
    VERDICTS,
    Document,
    Numbers,
    Row,
    dig,
    duration,
    early_stop,
    printable,
    ranked,
    significant,
    ties,
    unmeasured,
)
from wellposed.workbench.schema import check_results

CARD = (("computes", "Computes"), ("helps", "Helps"), ("not", "Avoid"), ("defaults", "Defaults"), ("cost", "Cost"),
        ("reference", "Reference"))  # fmt: skip
METRICS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "noise_accuracy": "with\nnoise", "rmse": "RMSE",
           "mae": "MAE", "r2": "R²"}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    shown: str = ""
    key: float | str = ""  # what the table sorts by
    more: str = ""
    text: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure in its two widths and the table of its numbers."""

    title: str
    drawings: list[Markup]
    columns: list[str]
    cells: list[list[str]]


def render(document: Document) -> str:
    """The report of a results document as HTML; the same document gives the same bytes.

    Raises `ValueError` when the document does not follow the schema.
    """
    check_results(document)
    n = Numbers(document, minus="−")
    rows = ranked(document)
    gained = figures.has_gain(document)
    templates = files("wellposed.workbench.report") / "templates"
    script = templates.joinpath("page.js").read_text("utf-8")
    css = templates.joinpath("page.css").read_text("utf-8")
    environment = Environment(
        loader=PackageLoader("wellposed.workbench.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    side = [name for name in METRICS if name in document["baseline"]["metrics"] and name != document["metric"]["name"]]
    return environment.get_template("page.html.j2").render(
        d=document, title=_sentences(document)[0], n=n, dig=dig, arxiv=_arxiv, verdicts=VERDICTS,
        sections=CARD, css=Markup(css), script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        lede=list(_lede(document, n)), stats=list(_stats(document, n)), facts=list(_facts(document)),
        tied=bool(ties(document)), shown=[word for word in VERDICTS if word in {r["verdict"] for r in gained}],
        **_figures(document, n), absent=unmeasured(document),
        columns=[{"title": title, "text": title == "verdict"} for title in _columns(document, side)],
        table=[(row, _cells(row, n, side)) for row in rows], baseline=_baseline_cells(document, n, side),
        measured=lambda row: list(_measured(row, n)),
        environment=[*sorted(document["environment"].items()), ("started", document["started"]),
                     ("time spent", duration(document["seconds"]))],
    )  # fmt: skip


def write(document: Document, path: str | os.PathLike[str]) -> None:
    """Write the report; a file that is there is replaced at once or not at all."""
    path = Path(path)
    page = render(document).encode("utf-8", errors="replace")  # lone surrogates of undecodable file names
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(page)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _arxiv(row: Row) -> str | None:
    """The arXiv id of the row's paper, if it looks like one."""
    id = str(dig(row, "paper", "arxiv"))
    return id if re.fullmatch(r"(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})(v\d+)?", id) else None


def _winner(document: Document) -> Row | None:
    id = dig(document["winner"], "id")
    return next((row for row in document["rows"] if row["id"] == id), None)


def _sentences(document: Document) -> tuple[str, str]:
    """The first sentence of the headline, and the others."""
    first, _, rest = re.sub(r"(?<=\w\.) (?=[A-Z0-9])", "\n", document["headline"], count=1).partition("\n")
    return first, rest


def _lede(document: Document, n: Numbers) -> Iterator[str]:
    if rest := _sentences(document)[1]:
        yield rest
    group = ties(document)
    if group:
        names = [f"{row['label']} ({n.ratio(dig(row, 'cost', 'time'), '×') or 'cost unknown'})" for row in group]
        yield (
            f"These seeds cannot tell {', '.join(names[:-1])} and {names[-1]} apart. "
            "In brackets the time of a training step; the cheapest stands first."
        )
    stop = early_stop(document)
    if stop and stop["gain"] is not None:
        yield (
            f"Stopping the plain baseline at the epoch that validation data choose already gives "
            f"{n.gain(stop['gain'])}{n.unit} {n.interval(stop['interval'])}."
        )


def _stats(document: Document, n: Numbers) -> Iterator[tuple[str, str]]:
    row = _winner(document)
    if row is None:
        return
    metric = document["metric"]["name"]
    yield f"{metric} gained by {row['label']}, 95 % {n.interval(row['interval'])}", n.gain(row["gain"])
    beyond = row.get("beyond_early_stopping")
    if dig(beyond, "gain") is not None:
        yield f"of it beyond early stopping, 95 % {n.interval(dig(beyond, 'interval'))}", n.gain(dig(beyond, "gain"))
    yield "seeds on which it beats the baseline", f"{row['wins']} of {row['seeds']}"
    if dig(row, "cost", "time") is not None:
        yield "time of a training step", n.ratio(dig(row, "cost", "time"), "×")


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    data, plan, model, metric = document["data"], document["plan"], document["model"], document["metric"]
    size = f"{data['train']:,} rows to train, {data['validation']:,} to validate, {data['test']:,} to test"
    shape = [f"{data[kind]:,} {kind}" for kind in ("features", "classes") if data[kind]]
    yield "Data", f"{data['name']}{': ' if data.get('description') else ''}{data.get('description') or ''}"
    yield "Size", "; ".join([size, *([", ".join(shape)] if shape else [])])
    noise = [f"{data['label_noise']:.0%} of the training labels are wrong"] if data["label_noise"] else []
    yield "Noise", "; ".join([*noise, *([f"inputs: {data['corrupt']}"] if data["corrupt"] else [])]) or "none added"
    length = f"{plan['epochs']:,} epochs, {plan['steps']:,} steps"
    yield "Model", f"{model['name']}, {model['parameters']:,} weights; {length}"
    setting = plan.get("setting")
    if dig(setting, "lr") and dig(setting, "batch_size"):
        yield "Training", f"AdamW, learning rate {setting['lr']:g}, {setting['batch_size']:,} rows in a step"
    better = "higher" if metric["direction"] == "max" else "lower"
    yield "Metric", f"{metric['name']} on test data{', percent' if metric['unit'] else ''}; {better} is better"
    seeds = f"{len(plan['seeds'])} paired: {_span(plan['seeds'])}"
    if plan["confirm_seeds"]:
        seeds += f" in the race; {len(plan['confirm_seeds'])} fresh to confirm: {_span(plan['confirm_seeds'])}"
    yield "Seeds", seeds
    tuning = plan.get("tuning")
    chosen = f"; {tuning['runs']:,} more chose strengths on validation data" if dig(tuning, "runs") else ""
    yield "Spent", f"{plan['runs']:,} training runs in {duration(document['seconds'])}{chosen}"
    yield "Population", document["population"]


def _span(seeds: list[int]) -> str:
    consecutive = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds))


def _figures(document: Document, n: Numbers) -> dict[str, Drawing | None]:
    gained = figures.has_gain(document)
    costed = figures.costed(document)
    shown = figures.curve_rows(document)
    plain = document["baseline"].get("curves")
    best = gained[0] if gained else None
    with figures.style():
        ranking = best and _drawing(
            "ranking", "Paired gain of each technique with its 95 % interval",
            f"{len(gained)} techniques; the best is {best['label']} with {n.gain(best['gain'])}{n.unit}.",
            figures.ranking, document,
            ["technique", "verdict", "gain", "95 % interval", "sd", "gain on each seed"],
            [[r["label"], r["verdict"], n.gain(r["gain"]), n.interval(r["interval"]), n.value(r.get("sd")),
              "  ".join(n.gain(g) for g in r["gains"])] for r in gained],
        )  # fmt: skip
        front = figures.frontier(costed)
        cheap = ", ".join(printable(r["label"]) for r in costed if r["id"] in front)
        cost = costed and _drawing(
            "cost", "Gain of each technique against the time of a training step",
            f"Nothing is both cheaper and better than: {cheap}.",
            figures.gain_against_cost, document,
            ["technique", "gain", "time", "memory", "passes", "beaten in both"],
            [[r["label"], n.gain(r["gain"]), *_costs(r, n), "no" if r["id"] in front else "yes"] for r in costed],
        )  # fmt: skip
        series = [("baseline", plain)] if dig(plain, "epoch") else []
        series += [(row["label"], row["curves"]) for row in shown]
        parts = ("validation", "train")
        curves = series and _drawing(
            "curves", "Learning curves on validation and training data",
            "Drawn are " + ", ".join(printable(name) for name, _ in series) + ".",
            figures.learning_curves, document,
            ["epoch", *(f"{name}, {part}" for part in parts for name, _ in series)],
            [[f"{epoch:g}", *(n.value(_at(curve, part, epoch)) for part in parts for _, curve in series)]
             for epoch in _thinned(series[0][1]["epoch"])],
        )  # fmt: skip
    return {"ranking": ranking or None, "cost": cost or None, "curves": curves or None}


def _costs(row: Row, n: Numbers) -> list[str]:
    time, memory, passes = (dig(row, "cost", kind) for kind in ("time", "memory", "passes"))
    return [n.ratio(time, "×"), n.ratio(memory, "×"), "" if passes is None else f"{passes:g}"]


def _at(curve: dict[str, Any], part: str, epoch: float) -> float | None:
    values = dict(zip(curve["epoch"], curve[part] or [], strict=False))
    return values.get(epoch)


def _thinned(epochs: list[float], most: int = 12) -> list[float]:
    step = -(-len(epochs) // most)
    return sorted({*epochs[::step], *epochs[-1:]})


def _drawing(
    name: str, title: str, description: str, draw: Callable[[Document, int], str], document: Document,
    columns: list[str], cells: list[list[str]],
) -> Drawing:  # fmt: skip
    drawings = []
    for kind, width in (("wide", figures.WIDE), ("narrow", figures.NARROW)):
        ids = f"{name}-{kind}-title", f"{name}-{kind}-desc"
        head = (
            f'<svg class="{kind}" role="img" aria-labelledby="{ids[0]} {ids[1]}" ',
            f'<title id="{ids[0]}">{escape(title)}</title><desc id="{ids[1]}">{escape(description)}</desc>',
        )
        svg = draw(document, width).replace("<svg ", head[0], 1)
        opening, rest = svg.split(">", 1)
        drawings.append(Markup(f"{opening}>{head[1]}{rest}"))
    return Drawing(title, drawings, columns, cells)


def _columns(document: Document, side: list[str]) -> list[str]:
    unit = "points" if document["metric"]["unit"] == "points" else document["metric"]["name"]
    return ["technique", "verdict", f"gain, {unit}\n[95 % interval]", "p", "wins", "beyond\nearly stopping", "last",
            "selected\n@ epoch", *(METRICS[name] for name in side), "time", "memory", "passes"]  # fmt: skip


def _number(shown: str, key: float | None, more: str = "") -> Cell:
    return Cell(shown, "" if key is None else key, more)


def _cells(row: Row, n: Numbers, side: list[str]) -> list[Cell]:
    """The row's cells after its name, in the order of `_columns`."""
    gain, last, selected = row["gain"], dig(row, "last", "value"), dig(row, "selected", "value")
    beyond, epoch = dig(row, "beyond_early_stopping", "gain"), dig(row, "selected", "epoch")
    if gain is None:
        return [Cell(row["verdict"], row["verdict"], text=True), *[Cell()] * (9 + len(side))]
    metrics = [(name, dig(row, "metrics", name, "value")) for name in side]
    costs = zip(_costs(row, n), ("time", "memory", "passes"), strict=True)
    return [
        Cell(row["verdict"], row["verdict"], text=True),
        _number(n.gain(gain) + ("*" if significant(row) else ""), gain, n.interval(row["interval"])),
        _number(n.p(row["p"]), row["p"]),
        _number(f"{row['wins']}/{row['seeds']}", row["wins"] / max(row["seeds"], 1)),
        _number(n.gain(beyond), beyond),
        _number(n.value(last), last),
        _number(n.value(selected), selected, "" if epoch is None else f"@ {epoch:.0f}"),
        *(_number(n.metric(name, value), value) for name, value in metrics),
        *(_number(shown, dig(row, "cost", kind)) for shown, kind in costs),
    ]


def _baseline_cells(document: Document, n: Numbers, side: list[str]) -> list[Cell]:
    base = document["baseline"]
    sd = "" if base["sd"] is None else f"sd over seeds {n.value(base['sd'])}"
    side_cells = [Cell(n.metric(name, base["metrics"][name])) for name in side]
    return [Cell("plain training", text=True), Cell(more=sd), Cell(), Cell(), Cell(), Cell(n.value(base["last"])),
            Cell(n.value(base["selected"])), *side_cells, Cell("1.00×"), Cell("1.00×"), Cell("1")]  # fmt: skip


def _measured(row: Row, n: Numbers) -> Iterator[tuple[str, str]]:
    """What the card says beyond the table."""
    if row["gain"] is None:
        return
    beyond = row.get("beyond_early_stopping")
    if beyond is not None and beyond["gain"] is not None:
        p = beyond.get("p")
        shown = f"{n.gain(beyond['gain'])} {n.interval(beyond['interval'])}"
        yield "Beyond early stopping", shown + ("" if p is None else f", p {n.p(p)}")
    if row.get("round") and row["verdict"] == "dropped":
        yield "Measured in", f"{row['round']}, {row['seeds']} seeds"
    if row.get("interval_new_data"):
        yield "For new data", f"95 % {n.interval(row['interval_new_data'])}, widened to speak of new data of this kind"
    flops = dig(row, "cost", "flops")
    if flops is not None:
        yield "Operations", f"{n.ratio(flops, '×')} the baseline's"
    wrong = dig(row, "metrics", "fitted_wrong", "value")
    if wrong is not None:
        yield "Wrong labels fitted", f"{wrong:.1f} %"
