"""Extension of griffe, which reads docstrings for the reference: formulas are shown, not their LaTeX."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

from wellposed.papers.site.formulas import display


class Formulas(Extension):
    """Converts the section ``Formula`` of every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for everything that was read."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)


def shown(docstring: str) -> str:
    """A docstring whose formulas are MathML."""

    def convert(match: re.Match[str]) -> str:
        lines = "\n".join(line.strip() for line in match[1].splitlines())
        return f"Formula:\n    {display(lines)}\n"

    return re.sub(r"^Formula:\n((?: {4}\S.*\n?)+)", convert, docstring, flags=re.M)
