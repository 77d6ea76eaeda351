"""Finished runs on disk, so that Ctrl-C, kill -9 or a power cut loses none of them.

One JSON file per run, `DIR/runs/<key>.json`, where the key is a hash of everything the result depends on. A file is
written under a temporary name in the same folder, synced and renamed, so a file that has its name is complete. No
database, no lock, no daemon; the folder may be shared by several machines. Every file carries a digest of its own
content: one that was torn or altered is set aside as `<key>.bad` and the run is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from .errors import BadInput

VERSION = 1
LARGEST = 64 * 2**20  # bytes; a run's record has some 10 kB
STALE = 3600.0  # seconds after which a temporary file belongs to nobody: writing takes milliseconds

Record = dict[str, Any]


class StoreError(BadInput):
    """The folder of results cannot be read or written: full disk, no permission, not a folder."""


@dataclass(frozen=True)
class Run:
    """Everything a run's result depends on. `config` and `versions` must be JSON-able, without NaN."""

    code: str  # hash of the sources, see `code_hash`
    config: Mapping[str, Any]
    data: str  # fingerprint of the data set
    seed: int
    versions: Mapping[str, str]

    @cached_property
    def key(self) -> str:
        """sha256 of the canonical JSON, 64 hexadecimal digits; equal on every machine."""
        return _digest(_plain(asdict(self)))


def code_hash(folder: Path) -> str:
    """sha256 over names and contents of all Python files below `folder`."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        source = path.read_bytes()
        total.update(f"{path.relative_to(folder).as_posix()}\0{len(source)}\0".encode() + source)
    return total.hexdigest()


class Store:
    """The results of finished runs below a folder.

    Attributes:
        quarantined: a sentence for each damaged file that was set aside.
        disagreements: keys of runs whose second result differed from the first. The first stays.
    """

    def __init__(self, folder: Path) -> None:
        """Opens `folder`/runs, creates it if missing, and removes temporary files that a killed process left.

        Raises:
            StoreError: it cannot be created or listed.
        """
        self.folder = folder / "runs"
        self.quarantined: list[str] = []
        self.disagreements: list[str] = []
        with _explained(self.folder, "opened"):
            self.folder.mkdir(parents=True, exist_ok=True)
            for temporary in self.folder.glob("*.tmp"):
                with suppress(FileNotFoundError):  # another process may be cleaning too
                    if time.time() - temporary.lstat().st_mtime > STALE:
                        temporary.unlink()

    def path(self, run: Run) -> Path:
        """Where the run's result lies, or will."""
        return self.folder / f"{run.key}.json"

    def get(self, run: Run) -> Record | None:
        """The stored result, or None. Whatever the file contains, only a folder that cannot be read raises.

        Raises:
            StoreError: the file exists and the system does not let us read it.
        """
        found = self._load(run)
        return None if found is None else found["result"]

    def put(self, run: Run, result: Record, timings: Record | None = None) -> Record:
        """Stores a result durably and returns the one that counts: the first finisher's.

        Args:
            result: JSON-able, without NaN; for equal runs equal on one machine.
            timings: what may differ between equal runs, such as seconds; kept beside the result and never compared.

        Raises:
            StoreError: full disk or no permission; no half-written file is left.
            ValueError, TypeError: the result is not JSON.
        """
        body = _plain({"version": VERSION, "run": asdict(run), "result": result, "timings": timings or {}})
        kept: Record = body["result"]
        first = self.get(run)
        if first is not None:
            if first != kept:
                self.disagreements.append(run.key)
            return first
        self._write(self.path(run), _canonical({**body, "digest": _digest(body)}))
        return kept

    def timings(self, run: Run) -> Record | None:
        """The timings stored with the result, or None."""
        found = self._load(run)
        return None if found is None else found["timings"]

    def _write(self, path: Path, text: str) -> None:
        temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
        with _explained(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)  # whoever shares the folder may have tidied it away
            try:
                with open(temporary, "x", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:  # Ctrl-C too
                with suppress(OSError):
                    temporary.unlink()
                raise
            _sync_folder(path.parent)

    def _load(self, run: Run) -> Record | None:
        path = self.path(run)
        with _explained(path, "read"):
            try:
                facts = path.lstat()
                # A pipe would block and a link may lead anywhere: only plain files are opened.
                plain = stat.S_ISREG(facts.st_mode) and facts.st_size <= LARGEST
                raw = path.read_bytes() if plain else b""
            except FileNotFoundError:
                return None
        try:
            found: Record = json.loads(raw, parse_constant=_no_constant)
            digest = found.pop("digest")
            if digest != _digest(found) or found["version"] != VERSION or _digest(found["run"]) != run.key:
                raise ValueError("its digest does not match its content")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._quarantine(path, f"{type(error).__name__}: {error}")
            return None
        return found

    def _quarantine(self, path: Path, why: str) -> None:
        bad = path.with_suffix(".bad")
        try:
            os.replace(path, bad)
            where = f"set aside as {bad.name}"
        except OSError as error:
            where = f"and could not be set aside ({error.strerror})"
        self.quarantined.append(f"{path.name} is damaged, {where}, and its run is made again: {why[:200]}")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    """What a reader of the file will see: keys are strings, tuples are lists."""
    return json.loads(_canonical(value))


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it contains {name}")


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system can (a folder cannot be opened on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _explained(path: Path, verb: str) -> Iterator[None]:
    """Turns an error of the system into one sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be {verb} ({error.strerror or error}): choose a folder with free space "
            "and write permission; runs that finished before are kept"
        ) from error
