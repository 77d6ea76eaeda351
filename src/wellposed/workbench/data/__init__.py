"""Data of `wellposed compare`: sources turned into one `Data`, and the `Split` that each seed draws from it."""

import difflib
import os
import re
from pathlib import Path

from ..errors import BadInput
from . import arrays, embedded, folder, table
from .dataset import Data, Split

__all__ = ["Data", "Split", "load"]


def load(source: str = "digits", target: str | None = None, *, task: str | None = None, image_size: int = 32) -> Data:
    """Read a data set into memory.

    `source` is the name of an embedded set (`digits`, `breast_cancer`, `wine`, `diabetes`, `text`), the path of a
    table (`.csv`, `.tsv`, `.parquet`; `target` names the column to predict), of an `.npz` with arrays x and y, or
    of a folder with one sub-folder of images for each class (made at most `image_size` pixels wide and high), or
    `package.module:function` returning data sets or arrays. `task`, "classification" or "regression", overrules
    what is read from the target of a table, an `.npz` or a function.

    Raises `BadInput` when the source is missing or cannot be learned from.
    """
    name = source.lower().replace("-", "_")
    path = Path(os.path.expanduser(source))
    is_table = path.suffix.lower() in table.SUFFIXES and not path.is_dir()
    if target is not None and not is_table:
        raise BadInput(f"--target is for tables ({', '.join(table.SUFFIXES)}): {source} has its own target")
    if name in embedded.SOURCES:
        _keeps_its_task(source, task)
        return embedded.SOURCES[name]()
    if path.is_dir():
        _keeps_its_task(source, task)
        return folder.load(path, image_size)
    if path.is_file():
        if path.stat().st_size == 0:
            raise BadInput(f"{source} is an empty file")
        if is_table:
            return table.load(path, target, task)
        if path.suffix.lower() == ".npz":
            return arrays.load_npz(path, task)
        raise BadInput(f"{source} is of no known kind: use {', '.join(table.SUFFIXES)}, .npz or a folder of images")
    if re.fullmatch(r"[^\\:]+:[\w.]+", source):
        return arrays.load_function(source, task)
    if path.suffix or len(path.parts) > 1:
        raise BadInput(f"there is no file or folder {source}: give the path of an existing one")
    close = difflib.get_close_matches(name, embedded.SOURCES, 1)
    guess = f"did you mean {close[0]}? Known are" if close else "known are"
    raise BadInput(
        f"unknown data set '{source}': {guess} {', '.join(embedded.SOURCES)}, besides a path of yours and "
        "package.module:function"
    )


def _keeps_its_task(source: str, task: str | None) -> None:
    if task is not None:
        raise BadInput(f"the task cannot be chosen for {source}: its targets say what it is")
