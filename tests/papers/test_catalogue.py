"""The catalogue: 505 whole rows, citations both ways, and one clear sentence for a damaged file."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import wellposed as wp
from wellposed.core.registry import FAMILIES, catalogue, papers_of, parts_of
from wellposed.papers import FIELDS, paper, papers, read_catalogue
from wellposed.papers.symptoms import SYMPTOMS
from wellposed.workbench.errors import BadInput

ROWS = list(papers().values())
GOOD = {"id": "x", "title": "X", "arxiv": "", "year": 2020, "family": "weights", "kind": "method", "mechanism": "M.",
        "headline": "", "symptoms": ["overfits"]}  # fmt: skip


def test_every_row_is_whole() -> None:
    assert len(ROWS) == len(papers()) == 505
    for row in ROWS:
        assert list(row) == list(FIELDS), "a status or a verdict has no place in the file"
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["id"])
        assert row["title"] == row["title"].strip() != ""
        assert re.fullmatch(r"(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})?", row["arxiv"]), row["id"]
        assert 1985 <= row["year"] <= 2030
        assert row["family"] in FAMILIES
        assert row["kind"] in {"method", "study", "system", "architecture"}
    assert set(FAMILIES) == {row["family"] for row in ROWS}
    assert [row["id"] for row in ROWS] == sorted(row["id"] for row in ROWS)


def test_mechanisms_are_sentences_of_their_own() -> None:
    for row in ROWS:
        said = row["mechanism"]
        assert 50 <= len(said) <= 300, row["id"]
        assert said[0].isupper(), row["id"]
        assert said.endswith("."), row["id"]
        assert "…" not in said
        assert "..." not in said
        assert len(row["headline"]) <= 100, row["id"]
        assert not row["headline"].endswith("."), "a fact, no sentence"
    assert len({row["mechanism"] for row in ROWS}) == 505
    openings = Counter(" ".join(row["mechanism"].split()[:8]) for row in ROWS)
    assert openings.most_common(1)[0][1] == 1, "no template"
    titles = {row["title"].lower() for row in ROWS}
    assert not {row["mechanism"].rstrip(".").lower() for row in ROWS} & titles


def test_every_row_names_known_symptoms_and_every_symptom_has_papers() -> None:
    used = Counter(key for row in ROWS for key in row["symptoms"])
    assert set(used) == set(SYMPTOMS)
    assert all(1 <= len(row["symptoms"]) == len(set(row["symptoms"])) <= 3 for row in ROWS)
    assert min(used.values()) >= 3, "a key that nearly nobody has helps nobody"


def test_symptoms_are_plain_sentences() -> None:
    sentences = [s.sentence for s in SYMPTOMS.values()]
    assert len(set(sentences)) == len(sentences)
    for key, symptom in SYMPTOMS.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", key)
        assert symptom.sentence.endswith(".")
        assert len(symptom.sentence) <= 70, key
        assert len(set(symptom.words)) == len(symptom.words) >= 3, key
    words = Counter(word for s in SYMPTOMS.values() for word in s.words)
    assert words.most_common(1)[0][1] == 1, "the same words for two symptoms"


def test_citations_are_answered_both_ways() -> None:
    for row in ROWS:
        for part in parts_of(row["id"]):
            assert row["id"] in papers_of(part)
    for cls in catalogue().values():
        for id in papers_of(cls):
            assert cls in parts_of(id)
    assert papers_of(wp.SAM) == ("sam",)
    assert papers_of(wp.LabelSmoothing) == ()


def test_one_paper() -> None:
    assert paper("elr")["title"].startswith("Early-Learning Regularization")
    with pytest.raises(KeyError, match="no paper has the id 'elrr'"):
        paper("elrr")


def lines(**changed: Any) -> str:
    return json.dumps({**GOOD, **changed})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lines() + "\n{not json", "line 2 .* is no JSON"),
        (lines() + "\n\n[1, 2]", "line 3 .* is no JSON object"),
        ("{}", "line 1 .* has no field 'id' of type str"),
        (lines(year="2020"), "line 1 .* has no field 'year' of type int"),
        (lines(symptoms="overfits"), "line 1 .* has no field 'symptoms' of type list"),
        (lines() + "\n" + lines(title="Y"), "line 2 .* repeats an id"),
        (lines() + "\n" + "[" * 100_000, "line 2 .* is no JSON"),
    ],
)
def test_damaged_catalogue(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(BadInput, match=says) as error:
        read_catalogue(file)
    assert str(file) in str(error.value)


def test_unreadable_catalogue(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere.* cannot be read"):
        read_catalogue(tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"\xe9\xff")
    with pytest.raises(BadInput, match="latin cannot be read"):
        read_catalogue(tmp_path / "latin")


def test_a_good_catalogue_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(lines() + "\n" + lines(id="y", title="a\u2028b") + "\n")
    assert list(read_catalogue(tmp_path / "rows")) == ["x", "y"]
