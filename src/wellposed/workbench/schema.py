"""The schema of `results.json`, version 1: what `wellposed compare` writes and `--json` prints.

`RESULTS_SCHEMA` is JSON Schema (draft 2020-12); `check_results` checks a document against it without another
library; `describe` writes the field list of docs/results-schema.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

VERSION = 1
Schema = dict[str, Any]

VERDICTS = ("better", "worth it", "tied", "equivalent", "undecided", "worse", "dropped", "failed", "not applicable",
            "reference")  # fmt: skip


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _number(description: str, **bounds: float) -> Schema:
    return {"type": "number", "description": description, **bounds}


def _count(description: str) -> Schema:
    return {"type": "integer", "minimum": 0, "description": description}


def _list(items: Schema, description: str, **more: Any) -> Schema:
    return {"type": "array", "items": items, "description": description, **more}


def _or_null(schema: Schema) -> Schema:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return {**schema, "type": [*kinds, "null"]}


def _object(description: str, required: Schema, optional: Schema | None = None) -> Schema:
    """An object whose fields are known; readers must ignore fields they do not know."""
    return {"type": "object", "description": description, "required": list(required),
            "properties": {**required, **(optional or {})}}  # fmt: skip


def _mapping(values: Schema, description: str) -> Schema:
    return {"type": "object", "description": description, "additionalProperties": values}


def _interval(description: str) -> Schema:
    return _or_null(_list({"type": "number"}, description, minItems=2, maxItems=2))


def _gain(description: str, **more: Schema) -> Schema:
    return _object(
        description,
        {
            "value": _or_null(_number("mean over the seeds")),
            "gain": _or_null(_number("paired mean difference to the baseline; + is better for every metric")),
            "interval": _interval("95 % interval of the gain, paired t"),
            **more,
        },
    )


_CURVE = _or_null(_list({"type": ["number", "null"]}, "the metric after each of these epochs, mean over the seeds"))
_CURVES = _or_null(
    _object(
        "learning curves",
        {"epoch": _list({"type": "number"}, "epochs, counted from 1"), "train": _CURVE, "validation": _CURVE},
        {"test_last": _or_null(_number("the metric on test data after the last epoch"))},
    )
)
_SEEDS = _list({"type": "integer"}, "seeds; a seed fixes split, initialisation, batches and noise of every row")
_WHY_NOT = _object("a technique that does not apply", {"id": _text("its id"), "why": _text("the reason, a sentence")})

_TUNED = _or_null(
    _object(
        "the parameter chosen on validation data",
        {
            "field": _text("its name"),
            "value": {"type": ["number", "string", "null"], "description": "the chosen value; a schedule as text"},
            "candidates": _list(
                _object(
                    "a value that was tried",
                    {
                        "value": {"type": ["number", "string", "null"], "description": "the value; a schedule as text"},
                        "score": _or_null(_number("its score on validation data")),
                    },
                ),
                "all values tried",
            ),
        },
    )
)

_ROW = _object(
    "a technique (or the early-stopping reference) and everything measured of it",
    {
        "id": _text("catalogue id or class name; unique among the rows"),
        "name": _text("the technique with its parameters"),
        "label": _text("the short name used in figures"),
        "family": _text("the family it belongs to"),
        "value": _or_null(_number("mean of the metric after the last epoch, on test data")),
        "gain": _or_null(_number("paired mean difference to the baseline; + is better for every metric")),
        "interval": _interval("95 % interval of the gain, paired t over the seeds"),
        "p": _or_null(_number("one-sided p of the joint sign-flip max-t test over all rows", minimum=0, maximum=1)),
        "verdict": {"enum": list(VERDICTS), "description": "the protocol's judgement"},
        "why": _text("reason of a failure, of not applying, of a tie, or how many seeds would decide; may be empty"),
        "wins": _count("seeds on which the row beats the baseline"),
        "seeds": _count("paired seeds behind the gain"),
        "gains": _list({"type": "number"}, "gain on each seed"),
        "tie_group": {"type": "boolean", "description": "cannot be told apart from the winner (the winner included)"},
        "last": _or_null(_gain("after the last epoch")),
        "selected": _or_null(
            _gain("at the epoch that validation data choose", epoch=_or_null(_number("mean of the chosen epochs")))
        ),
        "cost": _or_null(
            _object(
                "cost of a training step as ratios to the baseline's",
                {
                    "time": _or_null(_number("wall-clock time", minimum=0)),
                    "memory": _or_null(_number("peak memory", minimum=0)),
                    "passes": _or_null(_number("forward and backward passes in theory; plain is 1", minimum=0)),
                },
                {"flops": _or_null(_number("floating point operations, measured", minimum=0))},
            )
        ),
        "metrics": _mapping(
            _gain("one side metric on test data"),
            "side metrics by name: nll, ece, noise_accuracy, fitted_wrong, rmse, mae, r2",
        ),
        "recipe": _text("Python expression of the recipe"),
    },
    {
        "interval_new_data": _interval("the interval widened to new data of this kind (Nadeau and Bengio 2003)"),
        "sd": _or_null(_number("standard deviation of the paired difference over the seeds", minimum=0)),
        "needed_seeds": _or_null(_count("seeds that would decide an undecided row")),
        "round": _text("the part of the protocol the gain comes from"),
        "beyond_early_stopping": _or_null(
            _object(
                "paired difference to the early-stopping row",
                {"gain": _or_null(_number("mean; + is better")), "interval": _interval("95 % interval, paired t"),
                 "p": _or_null(_number("one-sided p", minimum=0, maximum=1))},
            )
        ),
        "paper": _or_null(
            _object("the paper the technique comes from", {"title": _text("its title")},
                    {"id": _text("catalogue id"), "arxiv": _or_null(_text("arXiv id")),
                     "year": _or_null(_count("year of publication"))})
        ),
        "tuned": _TUNED,
        "curves": _CURVES,
        "card": _or_null(
            _mapping(
                {"type": ["string", "null"]},
                "what the technique says of itself: summary, computes, helps, not, defaults, cost, reference",
            )
        ),
    },
)  # fmt: skip

RESULTS_SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "wellposed results",
    **_object(
        "one comparison; numbers are finite, null stands for what was not measured",
        {
            "schema": {"const": VERSION, "description": "version of this schema"},
            "command": _text("the exact command line"),
            "environment": _mapping(
                {"type": ["string", "integer", "number", "boolean", "null"]},
                "versions and machine: wellposed, python, torch, numpy, platform, threads, device, jobs",
            ),
            "started": _text("start, ISO 8601"),
            "seconds": _number("time spent; like `started` it differs from repetition to repetition", minimum=0),
            "data": _object(
                "the data",
                {
                    "name": _text("data set or file"),
                    "task": {"enum": ["classification", "regression", "language"], "description": "what is learned"},
                    "train": _count("training rows"),
                    "validation": _count("validation rows; they choose epochs and strengths"),
                    "test": _count("test rows; touched once"),
                    "features": _or_null(_count("inputs per row")),
                    "classes": _or_null(_count("classes")),
                    "label_noise": _number("share of training labels made wrong on purpose", minimum=0, maximum=1),
                    "corrupt": _or_null(_text("corruption of the inputs")),
                    "fingerprint": _text("hash of the data"),
                },
                {"description": _text("a sentence"), "dropped_rows": _count("rows left out: no target")},
            ),
            "model": _object("the model", {"name": _text("its name"), "parameters": _count("number of weights")}),
            "metric": _object(
                "the metric of gains",
                {"name": _text("its name"), "direction": {"enum": ["max", "min"], "description": "what is better"},
                 "unit": {"enum": ["points", ""], "description": "`points`: percentage points, values from 0 to 100"}},
            ),
            "plan": _object(
                "what was planned and spent",
                {
                    "protocol": {"enum": ["all", "race"], "description": "all rows on all seeds, or race and confirm"},
                    "rows": _list({"type": "string"}, "ids of the planned rows"),
                    "runs": _count("training runs"),
                    "seeds": _SEEDS,
                    "confirm_seeds": {**_SEEDS, "description": "fresh seeds of the confirmation after a race"},
                    "epochs": _count("epochs of a run"),
                    "steps": _count("updates of a run"),
                    "not_applicable": _list(_WHY_NOT, "techniques left out, with the reason"),
                },
                {
                    "setting": _mapping(
                        {"type": ["string", "integer", "number", "boolean", "null"]},
                        "what all runs share: data, model, epochs, batch_size, lr, metric and the like",
                    ),
                    "minutes": _or_null(_number("planned minutes", minimum=0)),
                    "budget_minutes": _or_null(_number("minutes allowed", minimum=0)),
                    "worth": _or_null(_number("smallest gain worth having", minimum=0)),
                    "tuning": _or_null(_object("the choice of strengths", {"seeds": _SEEDS, "runs": _count("runs")})),
                },
            ),
            "population": _text("what new draw the intervals speak of"),
            "baseline": _object(
                "plain training",
                {
                    "value": _or_null(_number("mean of the metric after the last epoch, on test data")),
                    "sd": _or_null(_number("standard deviation over the seeds", minimum=0)),
                    "last": _or_null(_number("the same as `value`")),
                    "selected": _or_null(_number("mean of the metric at the epochs that validation data choose")),
                    "metrics": _mapping({"type": ["number", "null"]}, "side metrics by name"),
                },
                {"curves": _CURVES, "tuned": _TUNED},
            ),
            "rows": _list(_ROW, "the rows; always one with id `early-stopping`"),
            "winner": _or_null(
                _object("the best row, if there is one",
                        {"id": _text("id of its row"), "recipe_toml": _text("its recipe as TOML"),
                         "snippet": _text("Python lines that use it in a training loop")})
            ),
            "headline": _text("the result in a sentence"),
            "warnings": _list({"type": "string"}, "what a reader should know before believing the numbers"),
        },
    ),
}  # fmt: skip


def check_results(document: Any) -> None:
    """Raises `ValueError` with the place and the mend if `document` is not a results document of this version."""
    if isinstance(document, dict) and document.get("schema", VERSION) != VERSION:
        raise ValueError(f"this results document has schema {document['schema']!r}; this wellposed reads {VERSION}")
    for complaint in _complaints(document, RESULTS_SCHEMA, "results"):
        raise ValueError(complaint)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
    "null": type(None),
}  # fmt: skip


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def _complaints(value: Any, schema: Schema, place: str) -> Iterator[str]:
    """The keywords of JSON Schema that `RESULTS_SCHEMA` uses, and the ban of NaN and infinity."""
    kinds = schema.get("type")
    if kinds is not None and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        allowed = kinds if isinstance(kinds, str) else " or ".join(kinds)
        yield f"{place} should be {allowed}, not {value!r:.60}"
        return
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} should be a finite number or null, not {value!r}"
    if "const" in schema and value != schema["const"]:
        yield f"{place} should be {schema['const']!r}, not {value!r:.60}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} should be one of {', '.join(map(repr, schema['enum']))}, not {value!r:.60}"
    if isinstance(value, dict):
        yield from (f"{place} lacks the field {key!r}" for key in schema.get("required", ()) if key not in value)
        known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        for key, item in value.items():
            yield from _complaints(item, known.get(key, other), f"{place}.{key}")
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{place} should have {schema['minItems']} items, not {len(value)}"
        for index, item in enumerate(value):
            yield from _complaints(item, schema.get("items", {}), f"{place}[{index}]")
    elif isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{place} is {value}, outside its range"


def describe() -> str:
    """Every field as a line of Markdown: its path, type and meaning."""
    lines = ["| field | type | meaning |", "|---|---|---|"]

    def walk(schema: Schema, place: str, optional: bool) -> None:
        kinds = schema.get("type", ["any"])
        kind = kinds if isinstance(kinds, str) else ", ".join(kinds)
        if "enum" in schema:
            kind = " ".join(f'`"{word}"`' for word in schema["enum"])
        elif "const" in schema:
            kind = f"`{schema['const']}`"
        if place:
            lines.append(f"| `{place}`{' (optional)' if optional else ''} | {kind} | {schema.get('description', '')} |")
        for key, field in schema.get("properties", {}).items():
            walk(field, f"{place}.{key}".lstrip("."), key not in schema["required"])
        for inner, mark in ((schema.get("items"), "[]"), (schema.get("additionalProperties"), ".*")):
            if inner and ("properties" in inner or mark == ".*"):
                walk(inner, place + mark, False)

    walk(RESULTS_SCHEMA, "", False)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(describe(), end="")
