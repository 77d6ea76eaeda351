"""The results document: what a judged comparison says, as plain data and files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import Recipe
from ..core.card import card
from ..papers import papers
from . import models, report, rows, trial
from .metrics import METRICS
from .outcome import Outcome, Result
from .plan import BASELINE, EARLY_STOPPING, Job, Plan
from .schema import VERSION, check_results
from .statistics import paired_interval

POINTS = {"accuracy", "ece", "noise_accuracy", "fitted_wrong"}
BETTER_HIGH = {"accuracy", "noise_accuracy", "r2"}


def build(
    command: str,
    setting: trial.Setting,
    plan: Plan,
    outcome: Outcome,
    table: Mapping[str, rows.Row],
    costs: Mapping[str, Mapping[str, Any]],
    *,
    environment: dict[str, Any],
    started: str,
    seconds: float,
    steps: int,
    budget: float | None,
    warnings: list[str],
) -> dict[str, Any]:
    """The document of schema 1."""
    data, split = setting.load(), setting.split(0)
    model = models.build(setting.model, data, split, 0)
    base = [s["found"] for s in outcome.scores(outcome.baseline)]
    entries = [_row(result, table, setting, outcome, costs, base) for result in outcome.rows]
    winner = next((e for e in entries if e["id"] == outcome.winner), None)
    metric = setting.metric
    found: dict[str, Any] = {
        "schema": VERSION,
        "command": command,
        "environment": environment,
        "started": started,
        "seconds": seconds,
        "data": {
            "name": data.name,
            "task": data.task,
            "description": data.description,
            "train": len(split.x_train),
            "validation": len(split.x_val),
            "test": len(split.x_test),
            "features": int(np.prod(split.x_train.shape[1:])),
            "classes": len(data.classes) if data.classes else None,
            "label_noise": setting.label_noise,
            "corrupt": setting.corrupt,
            "fingerprint": data.fingerprint,
            "dropped_rows": data.dropped_rows,
        },
        "model": {
            "name": setting.model or type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "metric": {
            "name": metric,
            "direction": METRICS[data.task][metric],
            "unit": "points" if metric in POINTS else "",
        },
        "plan": {
            "protocol": plan.protocol,
            "rows": [r.id for r in plan.rows],
            "runs": plan.runs,
            "seeds": list(plan.seeds),
            "confirm_seeds": list(plan.confirm_seeds),
            "minutes": plan.seconds / 60,
            "budget_minutes": budget / 60 if budget else None,
            "epochs": setting.epochs,
            "steps": steps,
            "not_applicable": [{"id": r.id, "why": r.why_not} for r in plan.not_applicable],
            "worth": plan.worth,
            "tuning": {"seeds": list(plan.tuning_seeds), "runs": plan.tuning_runs} if plan.tuning_seeds else None,
            "setting": dataclasses.asdict(setting),
        },
        "population": population(data.n, len(outcome.baseline.seeds)),
        "baseline": {
            "value": outcome.baseline.value,
            "sd": outcome.baseline.sd,
            "last": outcome.baseline.value,
            "selected": _mean([f["selected"][metric] for f in base]),
            "metrics": {k: _mean([f["last"][k] for f in base]) for k in base[0]["last"]},
            "curves": _curves(base, metric),
        },
        "rows": entries,
        "winner": None,
        "headline": headline(entries, winner, outcome, metric),
        "warnings": warnings,
    }
    if winner:
        recipe = _recipe(table[winner["id"]], outcome, setting)
        found["winner"] = {"id": winner["id"], "recipe_toml": recipe.to_toml(), "snippet": ""}
        found["winner"]["snippet"] = report.snippet(found)
    found = _finite(found)
    check_results(found)
    return found


def write(document: dict[str, Any], folder: Path) -> None:
    """``results.json``, ``report.html`` and, with a winner, ``recipe.toml`` and ``snippet.py``; whole or not at all."""
    _replace(folder / "results.json", json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n")
    report.write(document, folder / "report.html")
    for name, key in (("recipe.toml", "recipe_toml"), ("snippet.py", "snippet")):
        if document["winner"]:
            _replace(folder / name, document["winner"][key])
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier, smaller comparison


def population(n: int, seeds: int) -> str:
    """What the intervals speak of."""
    if n >= 50_000:
        return f"this data set and this split; {seeds} new draws of initialisation, batch order and noise"
    return (
        f"this data set; {seeds} new draws of split, label noise, initialisation and batch order, shared by all rows "
        "(interval_new_data widens the interval to new data of this kind, Nadeau and Bengio 2003)"
    )


def headline(entries: Sequence[dict[str, Any]], winner: dict[str, Any] | None, outcome: Outcome, metric: str) -> str:
    """The result in a sentence or two."""
    if winner is None:
        few = len(outcome.baseline.seeds) < 5
        return (
            "Nothing can be declared below 5 seeds."
            if few
            else "No technique is shown to beat plain training on these seeds."
        )
    unit = " points" if metric in POINTS else ""
    low, high = winner["interval"]
    text = (
        f"{winner['label']} helps most: {metric} {winner['gain']:+.3g}{unit} [{low:+.3g}, {high:+.3g}] over plain "
        f"training, {winner['wins']} of {winner['seeds']} seeds."
    )
    tied = [e for e in entries if e["tie_group"] and e["id"] not in (winner["id"], EARLY_STOPPING)]
    if tied:
        cheap = min(tied, key=lambda e: e["cost"]["time"])
        text += f" {len(tied)} cannot be told apart from it; the cheapest is {cheap['label']}."
    beyond = winner["beyond_early_stopping"]
    if beyond:
        verb = "goes" if (beyond["p"] or 1.0) <= 0.05 else "is not shown to go"
        text += f" It {verb} beyond early stopping ({beyond['gain']:+.3g}{unit})."
    return text


def _row(
    result: Result,
    table: Mapping[str, rows.Row],
    setting: trial.Setting,
    outcome: Outcome,
    costs: Mapping[str, Mapping[str, Any]],
    base: list[dict[str, Any]],
) -> dict[str, Any]:
    stopping = result.id == EARLY_STOPPING
    row = table[BASELINE] if stopping else table[result.id]
    scores = [s["found"] for s in outcome.scores(result)] if result.gains else []
    paired = dict(zip(outcome.baseline.seeds, base, strict=True))
    plain = [paired[s] if s in paired else _baseline_run(outcome, s) for s in result.seeds] if scores else []
    metric, high = setting.metric, METRICS[setting.load().task][setting.metric] == "max"
    cls = row.cls
    recipe = "Recipe()" if stopping or cls is None else repr(_recipe(row, outcome, setting, result))
    when = "selected" if stopping else "last"
    n = len(setting.split(0).x_test) / len(setting.split(0).x_train)
    sides = sorted({k for f in scores for k in f["last"]}) if scores else []
    facts = papers().get(cls.paper[0]) if cls is not None and cls.paper else None
    entry: dict[str, Any] = {
        "id": result.id,
        "name": "best epoch on validation data" if stopping else recipe.removeprefix("Recipe(").removesuffix(")"),
        "label": "early stopping" if stopping else (row.method or result.id),
        "family": "reference" if cls is None else cls.family,
        "value": result.value,
        "gain": result.gain,
        "interval": list(result.interval) if result.interval else None,
        "interval_new_data": list(paired_interval(result.gains, corrected=n)) if len(result.gains) > 1 else None,
        "sd": result.sd,
        "p": result.p,
        "verdict": result.verdict,
        "why": result.why,
        "wins": result.wins,
        "seeds": len(result.gains),
        "gains": list(result.gains),
        "tie_group": result.tie_group,
        "needed_seeds": result.needed_seeds,
        "round": result.round,
        "beyond_early_stopping": None,
        "last": _paired(scores, plain, when, "last", metric, high) if scores else None,
        "selected": None,
        "metrics": {k: _paired(scores, plain, when, "last", k, k in BETTER_HIGH) for k in sides if k != metric},
        "cost": _cost(result.id, costs) if scores else None,
        "tuned": None if stopping else _tuned(result, row),
        "curves": _curves(scores, metric) if scores else None,
        "recipe": recipe,
        "paper": {k: facts[k] for k in ("id", "title", "arxiv", "year")} if facts else None,
        "card": _card(cls) if cls is not None else None,
    }
    if scores:
        chosen = _paired(scores, plain, "selected", "last", metric, high)
        entry["selected"] = {**chosen, "epoch": _mean([f["selected"]["epoch"] for f in scores])}
    if result.beyond_early_stopping:
        b = result.beyond_early_stopping
        entry["beyond_early_stopping"] = {
            "gain": b.gain,
            "interval": list(b.interval) if b.interval else None,
            "p": b.p,
        }
    return entry


def _baseline_run(outcome: Outcome, seed: int) -> dict[str, Any]:
    """The baseline's run on a seed of the race."""
    found: dict[str, Any] = outcome.records[Job(BASELINE, seed, outcome.baseline.candidate)]["found"]  # type: ignore[index]
    return found


def _paired(
    scores: list[dict[str, Any]], plain: list[dict[str, Any]], when: str, against: str, key: str, high: bool
) -> dict[str, Any]:
    """Mean of a metric, and its paired gain over the baseline's last epoch."""
    ours = [f[when].get(key, math.nan) for f in scores]
    diffs = [(a - f[against].get(key, math.nan)) * (1 if high else -1) for a, f in zip(ours, plain, strict=True)]
    return {
        "value": _mean(ours),
        "gain": _mean(diffs),
        "interval": list(paired_interval(diffs)) if len(diffs) > 1 and all(map(math.isfinite, diffs)) else None,
    }


def _cost(id: str, costs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    ours, base = costs[BASELINE if id == EARLY_STOPPING else id], costs[BASELINE]
    return {
        "time": ours["time"],
        "memory": ours["memory"] / base["memory"],
        "passes": ours["passes"],
        "flops": ours["flops"] / base["flops"] if base["flops"] else None,
    }


def _tuned(result: Result, row: rows.Row) -> dict[str, Any] | None:
    if not result.candidate_scores or row.knob is None:
        return None
    values = [v if isinstance(v, int | float) else repr(v) for v in row.candidates]
    tried = [{"value": v, "score": s} for v, s in zip(values, result.candidate_scores, strict=True)]
    return {"field": row.knob, "value": values[result.candidate], "candidates": tried}


def _recipe(row: rows.Row, outcome: Outcome, setting: trial.Setting, result: Result | None = None) -> Recipe:
    result = result or next(r for r in outcome.rows if r.id == row.id)
    chosen = {row.knob: row.candidates[result.candidate]} if row.knob and result.candidate_scores else {}
    try:
        return rows.recipe_of(row, setting.facts(), 0, **chosen)
    except (TypeError, ValueError):  # not applicable for lack of a setting
        return Recipe()


def _card(cls: type) -> dict[str, str]:
    found = dataclasses.asdict(card(cls))
    found["not"] = found.pop("avoid")
    return found


def _curves(scores: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    curves = {k: np.mean([f["curves"][k] for f in scores], axis=0).tolist() for k in ("epoch", "train", "validation")}
    return {**curves, "test_last": _mean([f["last"][metric] for f in scores])}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _finite(value: Any) -> Any:
    """NaN and infinity become null; numpy numbers become Python's."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
