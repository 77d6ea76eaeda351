"""A hash of the code that a claim uses: its own file and every definition of this package that is reached from there.

Comments, docstrings and formatting do not count, nor does a definition nobody uses: editing an unrelated function in a
file makes nothing stale. The core is left out: tests of its own pin down its behaviour, and nearly every change there
would make everything stale.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

ROOT, LEFT_OUT = "wellposed", "wellposed.core"
Place = tuple[str, str]  # module, name defined in it


def fingerprint(module: str) -> str:
    """SHA-256, 16 hexadecimal digits, of the code reached from ``module``."""
    digest = hashlib.sha256()
    for (where, name), code in sorted(reached(module).items()):
        digest.update(f"{where}:{name}={code}\n".encode())
    return digest.hexdigest()[:16]


def reached(module: str) -> dict[Place, str]:
    """Every definition reached from the definitions of ``module``, with its code."""
    found: dict[Place, str] = {}
    waiting = [(module, name) for name in _scan(module)[0]]
    while waiting:
        place = waiting.pop()
        if place in found or (place[0] + ".").startswith(LEFT_OUT + "."):
            continue
        definitions, imports = _scan(place[0])
        name = place[1]
        if name in definitions:
            node = definitions[name]
            found[place] = _plain(node)
            waiting += _used(node, place[0], definitions, imports)
        elif name in imports:
            waiting.append(imports[name])
    return found


@cache
def _scan(module: str) -> tuple[dict[str, ast.stmt], dict[str, Place]]:
    """What a module defines and what it imports from this package, at its top level."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return {}, {}
    package = module if spec.submodule_search_locations else module.rpartition(".")[0]
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, Place] = {}
    for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        definitions[part.id] = node
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            if source.split(".")[0] == ROOT:
                imports |= {a.asname or a.name: (source, a.name) for a in node.names}
    return definitions, imports


def _used(node: ast.stmt, module: str, definitions: dict[str, ast.stmt], imports: dict[str, Place]) -> list[Place]:
    """Names of this package that a definition mentions; of an imported module, the names taken from it."""
    places: list[Place] = []
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and (part.id in definitions or part.id in imports):
            places.append((module, part.id))
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in imports:
            source, name = imports[part.value.id]
            places.append((f"{source}.{name}", part.attr))
    return places


def _plain(node: object) -> str:
    """A syntax tree as text, without positions, docstrings and empty fields; the same for every Python."""
    if isinstance(node, list):
        return "[" + ",".join(map(_plain, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    inside = ",".join(f"{k}={_plain(v)}" for k, v in fields.items() if v is not None and v != [])
    return f"{type(node).__name__}({inside})"
