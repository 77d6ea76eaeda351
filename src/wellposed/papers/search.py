"""Full-text search over the catalogue and the cards: titles, mechanisms, symptoms, and what the techniques say."""

from __future__ import annotations

import difflib
import re
import sqlite3
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from ..core.card import card
from ..core.registry import catalogue, parts_of
from . import papers
from .symptoms import SYMPTOMS

STOP = frozenset(re.findall(r"\w+", """
    a an and are as at be but by can do does for from has have how i if in into is it its me my no not of on or our so
    than that the their them then there this to too was we what when which why will with without you your
"""))  # fmt: skip
WEIGHTS = {"name": 8.0, "mechanism": 4.0, "symptoms": 3.0}
CARD = 1.0
WORDS = 40  # of a query; whoever pastes an abstract has said enough by then


class Entry(NamedTuple):
    """What can be found: a paper, or a technique that has none."""

    id: str
    family: str
    title: str
    mechanism: str
    symptoms: tuple[str, ...]
    parts: tuple[Any, ...]


class Index:
    """An index in memory; making it takes a few hundredths of a second.

    Cards are a table of their own: a long card must not make the words of its title count for less.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = list(entries)
        self.base = sqlite3.connect(":memory:")
        tokens = "tokenize='porter unicode61'"
        self.base.execute(f"CREATE VIRTUAL TABLE facts USING fts5({', '.join(WEIGHTS)}, {tokens})")
        self.base.execute(f"CREATE VIRTUAL TABLE cards USING fts5(card, {tokens})")
        for row, entry in enumerate(self.entries):
            names = " ".join(part.__name__ for part in entry.parts)
            said = " ".join(" ".join([SYMPTOMS[s].sentence, *SYMPTOMS[s].words]) for s in entry.symptoms)
            facts = [f"{entry.id} {names} {entry.title}", entry.mechanism, said]
            self.base.execute("INSERT INTO facts(rowid, name, mechanism, symptoms) VALUES (?, ?, ?, ?)",
                              [row, *map(_spelled, facts)])  # fmt: skip
            text = " ".join(map(_card_text, entry.parts))
            self.base.execute("INSERT INTO cards(rowid, card) VALUES (?, ?)", [row, _spelled(text)])

    def search(self, text: str, limit: int = 10) -> list[tuple[Entry, float]]:
        """The best entries and their scores, best first. Any text is a valid query; one without words finds nothing."""
        terms = _terms(text)
        if not terms:
            return []
        query = " OR ".join(terms)
        weights = ", ".join(map(str, WEIGHTS.values()))
        scores: dict[int, float] = {}
        for table, rank, factor in (("facts", f"bm25(facts, {weights})", 1.0), ("cards", "bm25(cards)", CARD)):
            for row, value in self.base.execute(f"SELECT rowid, {rank} FROM {table} WHERE {table} MATCH ?", [query]):
                scores[row] = scores.get(row, 0.0) - factor * value
        exact = text.strip().lower()
        ranked = sorted(scores, key=lambda row: (self.entries[row].id != exact, -scores[row], row))
        return [(self.entries[row], scores[row]) for row in ranked[:limit]]

    def unknown(self, text: str) -> dict[str, list[str]]:
        """Words of the query that occur nowhere, each with the nearest that do."""
        words = [w for w in _words(text)[:WORDS] if w not in STOP]
        return {
            word: difflib.get_close_matches(word, self.vocabulary, 2, 0.75)
            for word in dict.fromkeys(words)
            if not any(self.base.execute(f"SELECT 1 FROM {t} WHERE {t} MATCH ? LIMIT 1", [f'"{_spelled(word)}"'])
                       .fetchone() for t in ("facts", "cards"))
        }  # fmt: skip

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word of a title, mechanism, symptom or id."""
        said = (f"{e.id} {e.title} {e.mechanism}" for e in self.entries)
        also = (f"{s.sentence} {' '.join(s.words)}" for s in SYMPTOMS.values())
        return sorted({w for text in (*said, *also) for w in _words(text) if len(w) > 2 and w not in STOP})


def entries() -> Iterator[Entry]:
    """All papers, and all techniques without a paper under their class name in lower case."""
    for row in papers().values():
        yield Entry(row["id"], row["family"], row["title"], row["mechanism"], tuple(row["symptoms"]),
                    tuple(parts_of(row["id"])))  # fmt: skip
    for name, cls in catalogue().items():
        if not cls.paper and cls.family != "user":
            said = card(cls)
            yield Entry(name.lower(), cls.family, said.summary, said.computes, (), (cls,))


def _card_text(part: Any) -> str:
    found = card(part)
    return " ".join([found.summary, found.computes, found.helps, found.defaults, found.reference])


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _terms(text: str) -> list[str]:
    """Terms of the query, quoted: words that carry meaning, ``2:4`` as a phrase, and all of it as a phrase, with and
    without the words between."""
    chunks = [words for chunk in text.split() if (words := _words(chunk))][:WORDS]
    telling = [words for words in chunks if words != [words[0]] or words[0] not in STOP] or chunks
    if any(re.fullmatch(r"\d+:\d+", chunk) for chunk in text.split()):
        telling.append(["n", "m"])  # the general name of 2:4, 1:4 ...
    phrases = [" ".join(words) for words in telling]
    phrases += [" ".join(w for words in whole for w in words) for whole in (chunks, telling) if len(whole) > 1]
    return [f'"{_spelled(phrase)}"' for phrase in dict.fromkeys(phrases)]


def _spelled(text: str) -> str:
    """British and American spelling made one."""
    text = re.sub(r"(?<=\w{3})is(e|ed|es|er|ers|ing|ation|ations)\b", r"iz\1", text.lower())
    return re.sub(r"(?<=[a-z]{2})our", "or", text)
