"""Citations: parts find their paper, papers find their parts."""

from __future__ import annotations

import pytest

import wellposed as wp
from wellposed.core import citing
from wellposed.core.card import card
from wellposed.core.registry import load_all, parts_of
from wellposed.papers import papers


def test_what_is_decorated_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    load_all()  # first, or the library's own citations land in what is thrown away
    monkeypatch.setattr(citing, "parts", {})

    @wp.implements("git-re-basin", "a-paper-of-mine")
    def matched() -> None:
        """Nothing."""

    assert matched.paper == ("git-re-basin", "a-paper-of-mine")  # type: ignore[attr-defined]
    assert parts_of("a-paper-of-mine") == [matched]
    assert parts_of("sam") == [wp.SAM]
    assert parts_of("no-such-paper") == []


def test_ids_are_needed() -> None:
    with pytest.raises(TypeError, match="needs catalogue ids"):
        wp.implements()
    with pytest.raises(TypeError, match="needs catalogue ids"):
        wp.implements(lambda: None)  # type: ignore[arg-type]


def test_every_cited_id_has_a_row_and_every_citing_part_a_card() -> None:
    load_all()
    assert set(citing.parts) <= set(papers())
    for found in citing.parts.values():
        for part in found:
            assert card(part).summary.endswith(".")
