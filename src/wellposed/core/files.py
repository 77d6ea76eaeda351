"""Recipes as TOML and JSON, with a version."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from typing import TYPE_CHECKING, Any

from .errors import RecipeError
from .method import fields_of
from .registry import find
from .schedules import SCHEDULES

if TYPE_CHECKING:
    from .recipe import Recipe

VERSION = 1


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data: ``{"version", "seed", "method": [{"name", field: value, ...}]}``."""
    rows = [
        {"name": type(m).__name__}
        | {f.name: encode(getattr(m, f.name), f"{type(m).__name__}.{f.name}") for f in fields_of(m)}
        for m in recipe.listed
    ]
    return {"version": VERSION, "seed": recipe.seed, "method": rows}


def from_dict(data: Any) -> Recipe:
    """The recipe that ``to_dict`` described.

    Raises:
        RecipeError: for another version, unknown methods or unknown fields.
    """
    from .recipe import Recipe

    if not isinstance(data, dict) or not isinstance(data.get("method", []), list):
        raise RecipeError("a recipe file holds 'version', 'seed' and a list of [[method]] tables")
    if data.get("version") != VERSION:
        raise RecipeError(f"this recipe file has version {data.get('version')!r}; this release reads version {VERSION}")
    if extra := set(data) - {"version", "seed", "method"}:
        raise RecipeError(f"unknown entries in the recipe file: {', '.join(sorted(extra))}")
    built = []
    for row in data.get("method", []):
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise RecipeError("every [[method]] needs a name")
        cls = find(row["name"])
        fields = {f.name for f in fields_of(cls) if f.init}
        settings = {k: decode(v) for k, v in row.items() if k != "name"}
        if unknown := set(settings) - fields:
            raise RecipeError(f"{cls.__name__} has no {sorted(unknown)[0]!r}; it has {', '.join(sorted(fields))}")
        try:
            built.append(cls(**settings))
        except (TypeError, ValueError) as error:
            raise RecipeError(str(error)) from error
    return Recipe(*built, seed=data.get("seed", 0))


def to_json(recipe: Recipe) -> str:
    """The recipe as JSON text."""
    return json.dumps(to_dict(recipe), indent=2) + "\n"


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML text."""
    data = to_dict(recipe)
    lines = [f"version = {data['version']}", f"seed = {data['seed']}"]
    for row in data["method"]:
        lines += ["", "[[method]]", *(f"{k} = {_toml(v)}" for k, v in row.items() if v is not None)]
    return "\n".join(lines) + "\n"


def load_recipe(text: str) -> Recipe:
    """Read a recipe from the text of a TOML or JSON file.

    Raises:
        RecipeError: if the text is neither, or does not describe a recipe.
    """
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
        return from_dict(data)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"this is neither TOML nor JSON: {error}") from error
    except RecursionError:
        raise RecipeError("this file is nested too deeply to be a recipe") from None


def encode(value: Any, owner: str = "value") -> Any:
    """A setting as JSON data; schedules become tables. Raises RecipeError for what no file can hold."""
    if type(value) in SCHEDULES.values():
        return {"schedule": type(value).__name__, **dataclasses.asdict(value)}
    if callable(value):
        raise RecipeError(f"{owner} is {value!r}, which no file can hold; use one of {', '.join(SCHEDULES)}")
    if isinstance(value, list | tuple):
        return [encode(v, owner) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RecipeError(f"{owner} = {value!r} cannot be written to a file")


def decode(value: Any) -> Any:
    """The setting that ``encode`` wrote; lists become tuples."""
    if isinstance(value, dict):
        settings = {k: decode(v) for k, v in value.items() if k != "schedule"}
        try:
            return SCHEDULES[value["schedule"]](**settings)
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"{value!r} is no schedule; known are {', '.join(SCHEDULES)}") from error
    return tuple(decode(v) for v in value) if isinstance(value, list) else value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
