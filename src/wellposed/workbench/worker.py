"""What a worker process does: one run, from plain data to a stored result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.files import decode, encode
from . import trial
from .rows import Row
from .store import Run, Store


def job(setting: trial.Setting, row: Row, seed: int, chosen: dict[str, Any], run: Run, folder: Path) -> dict[str, Any]:
    """Everything ``execute`` needs, as plain data."""
    return {
        "setting": asdict(setting),
        "row": {"id": row.id, "method": row.method, "settings": encode_all(row.settings)},
        "seed": seed,
        "chosen": encode_all(chosen),
        "run": asdict(run),
        "folder": str(folder),
    }


def encode_all(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON data."""
    return {k: encode(v, k) for k, v in settings.items()}


def decode_all(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that ``encode_all`` wrote."""
    return {k: decode(v) for k, v in settings.items()}


def execute(spec: dict[str, Any]) -> dict[str, Any]:
    """Make the run and store it, unless it is stored already. Returns the result with its ``timings``."""
    run, store = Run(**spec["run"]), Store(Path(spec["folder"]))
    found = store.get(run)
    if found is None:
        row = Row(spec["row"]["id"], spec["row"]["method"], decode_all(spec["row"]["settings"]))
        result = trial.run(trial.Setting(**spec["setting"]), row, spec["seed"], decode_all(spec["chosen"]))
        timings = {k: result.pop(k) for k in ("seconds", "total_seconds")}
        found = store.put(run, result, timings)
    return {**found, "timings": store.timings(run) or {}}
