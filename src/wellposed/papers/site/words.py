"""Plain text of docstrings and data as Markdown that shows just that text."""

from __future__ import annotations

import re
from html import escape


def plain(text: str) -> str:
    """Text with everything escaped that Markdown or HTML would take for markup; ``code`` stays code."""
    pieces = re.split(r"(``[^`]+``|`[^`]+`)", text)
    return "".join(f"`{p.strip('`')}`" if i % 2 else _escaped(p) for i, p in enumerate(pieces))


def _escaped(text: str) -> str:
    text = re.sub(r"([\\`*_{}\[\]()#!])", r"\\\1", escape(text, quote=False))
    return re.sub(r"^(\d+)\.|^([-+])", lambda m: f"{m[1]}\\." if m[1] else f"\\{m[2]}", text).replace("|", "&#124;")


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return re.split(r"(?<=[.;:])\s", text, maxsplit=1)[0].rstrip(".;:")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
