"""Formulas of cards, LaTeX in docstrings, as MathML: browsers show it without a script."""

from __future__ import annotations

import re

NAMES = "log|ln|exp|sin|cos|tan|sinh|cosh|tanh|arcsin|arccos|arctan|det|tr"  # of functions, set apart from a factor


def mathml(latex: str) -> str:
    """One display formula as a ``<math>`` element; the LaTeX is kept as its alternative text.

    Raises:
        ValueError: for LaTeX that cannot be converted, or of which a command would be left standing in the formula.
    """
    from html import escape

    from latex2mathml.converter import convert

    bare = re.sub(r"\\.", "", latex)  # a brace after a backslash is a sign, not a bracket
    if bare.count("{") != bare.count("}"):
        raise ValueError(f"no formula: {latex} (a brace is missing)")
    try:
        found = convert(re.sub(r"\\arg\b", r"\\operatorname{arg}", latex), display="block")  # it does not know this one
    except Exception as error:  # its own exceptions share no base class
        raise ValueError(f"no formula: {latex} ({type(error).__name__}: {error})") from error
    if left := re.search(r"\\[A-Za-z]+", found):
        raise ValueError(f"no formula: {latex} (the command {left[0]} is unknown)")
    found = re.sub(rf"<mi>({NAMES})</mi>", r'<mrow><mspace width="0.17em"/><mi>\1</mi></mrow>', found)
    return found.replace("<math ", f'<math alttext="{escape(latex)}" ', 1)


def display(formula: str) -> str:
    """The formulas of a card, one a line, as a block of HTML without blank lines; empty where there is none."""
    lines = "".join(f"<div>{mathml(line)}</div>" for line in formula.splitlines())
    return f'<figure class="formula" data-search-exclude="">{lines}</figure>' if lines else ""
