"""Evidence: the verdict of every claim, one JSON file a paper, in ``evidence/`` of the repository."""

from __future__ import annotations

import difflib
import json
import platform
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch

from .. import __version__
from ..workbench.errors import BadInput
from . import claims
from .claim import ARMS, LEVEL, Claim, Outcome, ratios
from .fingerprint import fingerprint

SCHEMA = 1
FIELDS: dict[str, Any] = {
    "statement": str, "arena": str, "kind": str, "quantity": str, "verdict": str, "code": str,
    "estimate": int | float, "seconds": int | float, "seeds": list, "versions": dict,
}  # fmt: skip
"""What every record holds."""
FOLDER = Path(__file__).resolve().parents[3] / "evidence"  # exists in a checkout, not in an installed package


def claimed() -> list[str]:
    """Ids of the papers that have a claim, sorted."""
    return sorted(name.replace("_", "-") for _, name, _ in iter_modules(claims.__path__))


def claim_of(id: str) -> Claim:
    """The claim of a paper.

    Raises:
        BadInput: if it has none.
    """
    if id not in claimed():
        close = difflib.get_close_matches(id, claimed(), 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`wellposed papers` lists what is verified"
        raise BadInput(f"no claim for '{id}'; {hint}")
    found: Claim = import_module(_module(id)).CLAIM
    return found


def code_hash(id: str) -> str:
    """Hash of the code the claim of this paper uses."""
    return fingerprint(_module(id))


def record(claim: Claim, outcome: Outcome) -> dict[str, Any]:
    """What is written: declaration, verdict, every measured value, seconds, code and versions."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "id": claim.paper,
        "statement": claim.statement,
        "arena": claim.arena,
        "kind": claim.kind,
        "quantity": claim.quantity,
        "verdict": outcome.verdict,
        "estimate": short(outcome.estimate),
        "seeds": list(outcome.seeds),
        **_measured(claim, outcome),
        "seconds": round(outcome.seconds, 1),
        "code": code_hash(claim.paper),
        "versions": {"wellposed": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    if outcome.interval is None:
        return {**found, "tolerance": claim.tolerance}
    return {
        **found,
        **({"direction": claim.direction} if claim.kind == "paired" else {}),
        "margin": claim.margin,
        "interval": short(outcome.interval),
        "level": round(LEVEL, 4),
        "differences": short(outcome.gains),
    }


def _measured(claim: Claim, outcome: Outcome) -> dict[str, Any]:
    """Every value, by arm; of a cost claim also the ratios; of a curve claim x, every seed's series and their mean."""
    if claim.kind != "curve":
        arms = {"arms": {arm: short(by) for arm, by in outcome.arms.items()}}
        return {**arms, "ratios": short(ratios(outcome.arms))} if claim.kind == "cost" else arms
    swept, *series = outcome.arms["curve"].items()
    mean = {name: [sum(at) / len(at) for at in zip(*curves, strict=True)] for name, curves in series}
    return {"curve": {"swept": swept[0], "x": short(swept[1][0]), "seeds": short(dict(series)), "mean": short(mean)}}


def write(found: dict[str, Any], folder: Path | None = None) -> Path:
    """Write a record, keys sorted, replacing the old file at once."""
    path = (folder or FOLDER) / f"{found['id']}.json"
    new = path.with_suffix(".tmp")
    new.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
    return new.replace(path)


def read(id: str, folder: Path | None = None) -> dict[str, Any] | None:
    """The record of a paper; None where there is none, as in a package installed without the repository.

    Raises:
        BadInput: for a file that is no record of this paper.
    """
    path = (folder or FOLDER) / f"{id}.json"
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["schema"] == SCHEMA and found["id"] == id:
            _check(found)
            return dict(found)
        problem = f"schema {found['schema']} of paper '{found['id']}', not schema {SCHEMA} of '{id}'"
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"no record ({type(error).__name__}: {error})"
    raise BadInput(f"{path} holds {problem}: delete it and run `wellposed reproduce {id}`")


def _check(found: dict[str, Any]) -> None:
    """Raise ValueError or KeyError unless everything is there that a reader may ask for."""
    wrong = [name for name, kinds in FIELDS.items() if not isinstance(found[name], kinds)]
    if found["verdict"] not in ("PASS", "NULL", "FAIL") or found["kind"] not in ARMS:
        wrong.append("verdict or kind")
    elif found["kind"] in ("paired", "curve"):
        low, high = found["interval"]
        wrong += [name for name in ("margin", "differences", "level") if name not in found]
        wrong += [] if isinstance(low, int | float) and isinstance(high, int | float) else ["interval"]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} wrong")


def is_stale(found: dict[str, Any]) -> bool:
    """Whether the code has changed since the claim was run."""
    return bool(found["code"] != code_hash(found["id"]))


def in_words(found: dict[str, Any]) -> str:
    """The verdict on one line: ``PASS: accuracy (points) 25.1 higher [21.0, 29.2], 5 paired seeds, 7.3 s``."""
    seconds = f"{len(found['seeds'])} {'paired ' if found['kind'] == 'paired' else ''}seeds, {found['seconds']:g} s"
    if found["kind"] == "exact":
        said = f"largest {found['quantity']} {found['estimate']:.2g}, tolerance {found['tolerance']:g}"
    elif found["kind"] == "cost":
        said = f"{found['quantity']} at most {found['estimate']:.3g} times as much, tolerance {found['tolerance']:g}"
    else:
        low, high = found["interval"]
        direction = f" {found['direction']}" if found["kind"] == "paired" else ""
        said = f"{found['quantity']} {found['estimate']:.3g}{direction} [{low:.3g}, {high:.3g}]"
        said += f", margin {found['margin']:g}"
    return f"{found['verdict']}: {said}; {seconds}"


def mutation_in_words(found: dict[str, Any]) -> str:
    """What the damaged technique gave: ``with strength 0: FAIL``; empty where no damage was recorded."""
    return f"with {found['mutation']['words']}: {found['mutation']['verdict']}" if "mutation" in found else ""


def shown(id: str) -> str:
    """What ``wellposed show`` says of a paper's evidence: statement, arena and verdict, or why there is none."""
    if id not in claimed():
        return f"no claim has been written for {id} yet"
    declared, found = claim_of(id), read(id)
    if found is None:
        where = "not run yet" if FOLDER.is_dir() else f"kept in the repository (evidence/{id}.json), not in the package"
        return f"{declared.statement}\n{declared.arena}\n{where}: `wellposed reproduce {id}` runs it"
    note = "\nstale: the code has changed since" if is_stale(found) else ""
    lines = [found["statement"], found["arena"], in_words(found), mutation_in_words(found)]
    return "\n".join(filter(None, lines)) + note


def _module(id: str) -> str:
    return f"{claims.__name__}.{id.replace('-', '_')}"


def short(value: Any) -> Any:
    """Six digits of every number inside: what a machine's rounding leaves unchanged, and easy to read in a diff."""
    if isinstance(value, dict):
        return {key: short(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [short(inner) for inner in value]
    return float(f"{value:.6g}") + 0.0  # no -0
