"""All generated files of the site, as a mapping from their place among the sources to their text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from ...core.registry import FAMILIES, load_all
from .. import evidence, papers
from . import cards, indexes
from .plots import plot, standalone

ONLY = "WELLPOSED_SITE_PAPERS"
"""Environment variable: ids, separated by commas, of the only papers to make pages of; for a quick look."""


def chosen() -> list[str]:
    """Ids of the papers the site is about: all, or those the environment names."""
    only = os.environ.get(ONLY)
    return sorted(papers()) if only is None else [id for id in sorted(papers()) if id in only.split(",")]


def families() -> list[str]:
    """Families that have papers on the site or techniques in the library."""
    own = {papers()[id]["family"] for id in chosen()} | {cls.family for cls in indexes.unlisted().values()}
    return [family for family in FAMILIES if family in own]


def packages() -> list[str]:
    """Families that have code, and the parts they share."""
    load_all()
    return [name for name in (*FAMILIES, "parts") if find_spec(f"wellposed.{name}")]


def pages() -> dict[str, str]:
    """Every generated page and drawing."""
    ids = chosen()
    records = {id: found for id in ids if (found := evidence.read(id))}
    drawings = {id: plot(record) for id, record in records.items()}
    found = {f"papers/{id}.md": cards.paper_page(id, drawings.get(id)) for id in ids}
    found |= {f"techniques/{name}.md": cards.technique_page(cls) for name, cls in indexes.unlisted().items()}
    found |= {f"plots/{id}.svg": standalone(drawing) for id, drawing in drawings.items()}
    for family in families():
        own = [id for id in ids if papers()[id]["family"] == family]
        found[f"families/{family}.md"] = indexes.family_page(family, own)
    found |= {f"api/{name}.md": indexes.reference_page(name) for name in packages()}
    found["gallery.md"] = indexes.gallery_page(records)
    found["symptoms.md"] = indexes.symptoms_page(ids)
    return found


def navigation() -> list[Mapping[str, object]]:
    """What the pages add to the navigation: techniques by symptom and family, and the reference."""
    techniques: list[Mapping[str, str]] = [{"By symptom": "symptoms.md"}, {"Gallery of evidence": "gallery.md"}]
    techniques += [{indexes.title(family): f"families/{family}.md"} for family in families()]
    own = [{"Core": "api/core.md"}, {"Tasks": "api/tasks.md"}, {"results.json": "results-schema.md"}]
    reference = [*own, *({indexes.title(name): f"api/{name}.md"} for name in packages())]
    return [{"Techniques": techniques}, {"Reference": reference}]
