"""The HTML report and the code to paste; matplotlib and jinja2 are loaded when a report is drawn."""

from __future__ import annotations

import os

from wellposed.workbench.report.paste import snippet
from wellposed.workbench.report.words import Document

__all__ = ["render", "snippet", "write"]


def render(document: Document) -> str:
    """The report of a results document as HTML; see `wellposed.workbench.report.page.render`."""
    from wellposed.workbench.report import page

    return page.render(document)


def write(document: Document, path: str | os.PathLike[str]) -> None:
    """Write the report to `path`; see `wellposed.workbench.report.page.write`."""
    from wellposed.workbench.report import page

    page.write(document, path)
