"""A hash of the code that a claim uses: its own file and every definition of this package that is reached from there.

Comments, docstrings and formatting do not count, nor does a definition nobody uses: editing an unrelated function in a
file makes nothing stale. Left out are the core, whose behaviour tests of its own pin down, the rule of the verdict,
which can be applied to old measurements, and the means of mutation: nearly every change there would make everything
stale.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]  # the package
LEFT_OUT = ("wellposed.core.", "wellposed.papers.claim.", "wellposed.papers.mutation.")
Place = tuple[str, str]  # module, name defined in it


def fingerprint(module: str, source: Path = SOURCE) -> str:
    """SHA-256, 16 hexadecimal digits, of the code reached from ``module`` of the package in the folder ``source``."""
    digest = hashlib.sha256()
    for (where, name), code in sorted(reached(module, source).items()):
        digest.update(f"{where}:{name}={code}\n".encode())
    return digest.hexdigest()[:16]


def reached(module: str, source: Path = SOURCE) -> dict[Place, str]:
    """Every definition reached from the definitions of ``module``, with its code."""
    found: dict[Place, str] = {}
    waiting = [(module, name) for name in _scan(module, source)[0]]
    while waiting:
        place = waiting.pop()
        if place in found or (place[0] + ".").startswith(LEFT_OUT):
            continue
        code, leads_to = _definition(place, source)
        if code:
            found[place] = code
        waiting += leads_to
    return found


@cache
def _definition(place: Place, source: Path) -> tuple[str, list[Place]]:
    """A definition's code and the names it uses; of an imported name no code and where it comes from.

    Kept, because many claims reach the same definitions, and `wellposed papers` asks for the hash of every claim.
    """
    module, name = place
    definitions, imports = _scan(module, source)
    if name in definitions:
        node = definitions[name]
        return _plain(node), _used(node, module, definitions, imports)
    return "", [imports[name]] if name in imports else []


@cache
def _scan(module: str, source: Path) -> tuple[dict[str, ast.stmt], dict[str, Place]]:
    """What a module defines and what it imports from this package, at its top level."""
    root, *parts = module.split(".")
    folder = source.joinpath(*parts)
    package = module if folder.is_dir() else module.rpartition(".")[0]
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    if root != source.name or not file.is_file():  # an object whose attribute was taken, say
        return {}, {}
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, Place] = {}
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        definitions[part.id] = node
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            imports |= {a.asname or a.name: (origin, a.name) for a in node.names}
    return definitions, imports


def _used(node: ast.stmt, module: str, definitions: dict[str, ast.stmt], imports: dict[str, Place]) -> list[Place]:
    """Names of this package that a definition mentions; of an imported module, the names taken from it."""
    places: list[Place] = []
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and (part.id in definitions or part.id in imports):
            places.append((module, part.id))
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in imports:
            places.append((".".join(imports[part.value.id]), part.attr))
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
