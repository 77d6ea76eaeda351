"""What a worker process does: one run, from plain data to a stored result."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import trial
from .rows import Row
from .store import Run, Store


def job(setting: trial.Setting, row: Row, seed: int, chosen: dict[str, Any], run: Run, folder: Path) -> dict[str, Any]:
    """Everything ``execute`` needs, as plain data."""
    return {
        "setting": asdict(setting),
        "row": asdict(row),
        "seed": seed,
        "chosen": chosen,
        "run": asdict(run),
        "folder": str(folder),
    }


def execute(spec: dict[str, Any]) -> dict[str, Any]:
    """Make the run and store it, unless it is stored already. Returns the result with its ``timings``."""
    run, store = Run(**spec["run"]), Store(Path(spec["folder"]))
    found = store.get(run)
    if found is None:
        result = trial.run(trial.Setting(**spec["setting"]), Row(**spec["row"]), spec["seed"], spec["chosen"])
        timings = {k: result.pop(k) for k in ("seconds", "total_seconds")}
        found = store.put(run, result, timings)
    return {**found, "timings": store.timings(run) or {}}
