"""The rows of a comparison: which techniques, with which settings, and what their strength may be."""

from __future__ import annotations

import ast
import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from ..core import Method, Recipe, RecipeError, Task
from ..core.method import default_of, fields_of
from ..core.registry import FAMILIES, catalogue, find
from ..papers import papers
from .errors import BadInput
from .facts import Facts
from .plan import BASELINE, EARLY_STOPPING


@dataclass(frozen=True)
class Row:
    """One technique as it enters a comparison.

    Attributes:
        id: catalogue id, or the class name in lower case where there is none.
        method: class name; None for the baseline.
        settings: what the user fixed.
        knob: the hyper-parameter to choose on validation data, if any.
        candidates: its values, the default first.
    """

    id: str
    method: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    knob: str | None = None
    candidates: tuple[Any, ...] = ()

    @property
    def cls(self) -> type[Method] | None:
        """The method's class."""
        return catalogue()[self.method] if self.method else None

    def build(self, facts: Facts, **chosen: Any) -> list[Method]:
        """The methods of this row; settings that are facts are filled in where nobody gave them."""
        if self.cls is None:
            return []
        required = {f.name for f in fields_of(self.cls) if default_of(f) is dataclasses.MISSING}
        return [self.cls(**{**facts.settings(required), **self.settings, **chosen})]


def baseline() -> Row:
    """The plain row: no method. What validation data choose for it, when to stop, is the early-stopping row."""
    return Row(BASELINE)


AGAINST = ("overfits", "wrong-labels", "few-labels", "over-confident", "generalization")
"""Symptoms that the scores of a comparison show; see ``wellposed.papers.symptoms``."""


def is_default(cls: type[Method]) -> bool:
    """Whether the technique belongs to a comparison for which nobody named any.

    Those do whose paper is about one of ``AGAINST``, and the plain yardsticks, which cite none. What makes models
    small, keeps them learning or defends them would have to be measured otherwise.
    """
    return not cls.paper or any(set(papers()[id]["symptoms"]) & set(AGAINST) for id in cls.paper)


def parse(text: str, tune: bool = True) -> list[Row]:
    """Rows from ``--methods``: names, ids, families, ``default`` or ``all``, separated by commas; parameters follow.

    ``elr,SAM:rho=0.2:adaptive=True,smoothness``. What the user fixes is not tuned.

    Raises:
        BadInput: for unknown names, parameters and illegal values.
    """
    rows: dict[str, Row] = {}
    for part in (p.strip() for p in text.split(",")):
        if not part:
            continue
        name, *settings = part.split(":")
        if name.lower() in ("all", "default") or name.lower() in FAMILIES:
            if settings:
                raise BadInput(f"'{part}': parameters belong to one method, not to a family")
            family = name.lower()
            known = [c for c in catalogue().values() if c.family != "user"]
            found = [c for c in known if family in ("all", c.family) or (family == "default" and is_default(c))]
            if not found:
                raise BadInput(f"the family '{name}' has no methods yet")
            new = [_row(cls, {}, tune) for cls in found]
        elif name.lower() in {BASELINE, EARLY_STOPPING, "earlystopping"}:
            continue  # always there
        else:
            try:
                cls = find(name)
            except RecipeError as error:
                raise BadInput(str(error)) from None
            new = [_row(cls, dict(_setting(cls, s) for s in settings), tune)]
        for row in new:
            key = row.id
            while key in rows and rows[key].settings != row.settings:
                key = f"{key}'"
            rows.setdefault(key, dataclasses.replace(row, id=key))
    rows.pop("earlystopping", None)
    if not rows:
        raise BadInput("no method to compare: name some, a family, or 'all' (`wellposed methods` lists them)")
    return list(rows.values())


def row_id(cls: type[Method]) -> str:
    """What a row of this class is called: its paper's id, or the class name where another class has that already."""
    sharing = [c for c in catalogue().values() if c.paper[:1] == cls.paper[:1]]
    return cls.paper[0] if cls.paper and cls is sharing[0] else cls.__name__.lower()


def not_applicable(row: Row, task: Task, facts: Facts) -> str | None:
    """Why the row cannot run on this task, from its declarations alone; None if nothing speaks against it."""
    cls = row.cls
    if cls is None:
        return None
    if cls.pretrained:
        return "starts from a trained model, and these are trained from scratch"
    if cls.targets is not None and task.target not in cls.targets:
        return f"works with {' or '.join(sorted(cls.targets))} targets; here they are {task.target}"
    try:
        row.build(facts)
    except TypeError as error:
        missing = re.findall(r"'(\w+)'", str(error).partition("argument")[2])
        return f"needs {' and '.join(missing)}; give {row.id}:{':'.join(f'{m}=...' for m in missing)}"
    except ValueError as error:
        return str(error)
    return None


def recipe_of(row: Row, facts: Facts, seed: int, **chosen: Any) -> Recipe:
    """The recipe one run trains with."""
    return Recipe(*row.build(facts, **chosen), seed=seed)


def _row(cls: type[Method], settings: dict[str, Any], tune: bool) -> Row:
    knob, candidates = None, ()
    for f in fields_of(cls) if tune else ():
        grid = f.metadata.get("grid", ())
        if grid and f.name not in settings:
            knob, candidates = f.name, tuple(sorted(grid, key=lambda v: v != default_of(f)))
            break
    return Row(row_id(cls), cls.__name__, settings, knob, candidates)


def _setting(cls: type[Method], text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    names = [f.name for f in fields_of(cls) if f.init]
    if not equals or name not in names:
        raise BadInput(f"{cls.__name__} has no parameter '{name}'; write name=value with one of {', '.join(names)}")
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    try:
        required = {f.name: 2 for f in fields_of(cls) if default_of(f) is dataclasses.MISSING and f.name != name}
        cls(**{**required, name: parsed})
    except (TypeError, ValueError) as error:
        raise BadInput(f"{cls.__name__}: {error}") from None
    return name, parsed
