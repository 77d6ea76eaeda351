"""Search: what somebody in trouble would type finds what treats it; nothing typed breaks it."""

from __future__ import annotations

import pytest

from wellposed.core.registry import parts_of
from wellposed.papers import papers
from wellposed.papers.search import Entry, Index, entries

INDEX = Index(entries())


def top(text: str, limit: int) -> list[str]:
    return [entry.id for entry, _ in INDEX.search(text, limit)]


@pytest.mark.parametrize("text", ["noisy labels", "label noise", "my labels are wrong", "mislabelled examples"])
def test_wrong_labels(text: str) -> None:
    found = top(text, 7)
    assert "elr" in found
    assert sum("wrong-labels" in papers()[id]["symptoms"] for id in found if id in papers()) >= 5


def test_noisy_labels_begins_with_papers_about_nothing_else() -> None:
    assert top("noisy labels", 3)[0] == "elr"
    assert {"nested-dropout-noisy-labels", "self-taught-loss-rescaling"} <= set(top("noisy labels", 5))


@pytest.mark.parametrize(
    ("text", "wanted", "within"),
    [
        ("prune to 2:4", {"s-ste", "progressive-gradient-flow-nm", "step-nm-sparsity", "bi-mask"}, 5),
        ("1:8 sparsity", {"s-ste", "step-nm-sparsity"}, 6),
        ("loss of plasticity", {"spectral-regularization-plasticity"}, 1),
        ("catastrophic forgetting", {"rehearsal-free-cl", "hierarchical-importance-reg"}, 6),
        ("overconfident", {"dual-focal-loss", "squentropy"}, 6),
        ("test-time adaptation", {"tent", "eata", "cotta"}, 8),
        ("sharpness aware", {"sam"}, 2),
        ("membership privacy unlearning", {"l1-sparse-unlearn", "adapt-then-unlearn"}, 4),
        ("mode collapse", {"manifold-entropy-gan"}, 3),
        ("exploding gradients", {"gradient-clipping-omega"}, 3),
        ("label smoothing", {"labelsmoothing"}, 3),
        ("SAM", {"sam"}, 1),
        ("gor", {"gor"}, 1),
    ],
)
def test_what_people_type(text: str, wanted: set[str], within: int) -> None:
    assert wanted <= set(top(text, within)), top(text, within)


@pytest.mark.parametrize(
    ("one", "other"), [("quantisation", "quantization"), ("colour", "color"), ("PRUNE", "pruning")]
)
def test_spelling_makes_no_difference(one: str, other: str) -> None:
    assert top(one, 10) == top(other, 10) != []


@pytest.mark.parametrize(
    "text",
    ['"', "'", "AND", "OR NOT NEAR(", "a* b^ -c :d {e}", "name:elr", "😀", "\0", "\udcff", "Ω", "", " ", "--", "NULL",
     "'; DROP TABLE facts; --", "labels " * 5000, "x" * 100_000],
)  # fmt: skip
def test_any_text_is_a_query(text: str) -> None:
    INDEX.search(text)
    INDEX.unknown(text)


def test_operators_are_words() -> None:
    assert top("noisy AND labels", 5) == top("noisy labels", 5)
    assert top('"noisy" "labels"', 1) == ["elr"]
    assert top("😀 noisy labels", 1) == ["elr"]


def test_unknown_words_have_neighbours() -> None:
    assert INDEX.unknown("nosiy lables") == {"nosiy": ["noisy"], "lables": ["labels"]}
    assert INDEX.unknown("noisy labels") == {}
    assert INDEX.unknown("qqqqzz") == {"qqqqzz": []}
    assert INDEX.search("qqqqzz") == []


def test_a_title_counts_more_than_a_mechanism_and_a_mechanism_more_than_a_symptom() -> None:
    filler = "many words about other things"
    made = [
        Entry("one", "weights", filler, filler, ("wrong-labels",), ()),
        Entry("two", "weights", filler, "about mislabelled things", (), ()),
        Entry("three", "weights", "mislabelled things", filler, (), ()),
        *(Entry(f"other{i}", "weights", filler, filler, ("overfits",), ()) for i in range(20)),
    ]
    assert [entry.id for entry, _ in Index(made).search("mislabelled")] == ["three", "two", "one"]


def test_cards_are_searched() -> None:
    """A word of ELR's card that its row does not hold."""
    assert "renormalised" not in papers()["elr"]["mechanism"]
    found = {entry.id: entry for entry, _ in INDEX.search("renormalised", 505)}
    assert "elr" in found
    assert found["elr"].parts == tuple(parts_of("elr"))


def test_limit_and_order() -> None:
    scores = [score for _, score in INDEX.search("regularization", 30)]
    assert len(scores) == 30
    assert scores == sorted(scores, reverse=True)
