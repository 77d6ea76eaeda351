"""Hook of mkdocs: puts the generated pages into a build, without writing them among the sources."""

from __future__ import annotations

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from wellposed.papers.site import build, indexes


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Extend the navigation."""
    config.nav = [*(config.nav or []), *build.navigation()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for place, text in build.pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Say on the start page how far the catalogue is."""
    if page.file.src_uri == "index.md":
        return markdown.replace("<!-- counts -->", indexes.counts(build.chosen()))
    return markdown
