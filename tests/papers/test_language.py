"""Text and the models that learn it."""

from __future__ import annotations

import math

import pytest
import torch

from wellposed.papers import language
from wellposed.papers.language import BLANK, VOCABULARY, bidirectional, bits_per_letter, causal, chapters, manual
from wellposed.parts.decoding import generate


def test_letters_there_and_back() -> None:
    ids = language.encoded("The  Quick-brown\nfox, 2 jumps!")
    assert language.decoded(ids) == "the quick brown fox jumps"
    assert language.decoded(torch.tensor([BLANK, 1, 0, 26])) == "_a z"
    assert torch.equal(language.encoded("42"), torch.empty(0, dtype=torch.long))


def test_chapters_are_english_and_no_paragraph_comes_twice() -> None:
    ids = torch.cat(chapters())
    assert 200_000 < len(ids) < 600_000
    assert int(ids.max()) == 26
    assert len(chapters()) > 50
    share = torch.bincount(ids, minlength=27).double() / len(ids)
    entropy = float(-(share * share.log2()).sum())
    assert 4.0 < entropy < 4.3  # of English letters and spaces


def test_split_keeps_chapters_apart() -> None:
    text, again, other = manual(0), manual(0), manual(1)
    assert torch.equal(text.train, again.train)
    assert not torch.equal(text.test, other.test)
    assert len(text.train) + len(text.test) == sum(map(len, chapters()))
    share = len(text.test) / sum(map(len, chapters()))
    assert 0.2 <= share < 0.2 + max(map(len, chapters())) / sum(map(len, chapters()))
    both = torch.cat([text.train, text.test])
    assert torch.equal(torch.bincount(both), torch.bincount(torch.cat(chapters())))


def test_windows_and_sections() -> None:
    ids = torch.arange(23)
    found = language.windows(ids, 5, 400, torch.Generator().manual_seed(0))
    assert torch.equal(found - found[:, :1], torch.arange(5).expand(400, 5))
    assert sorted(set(found[:, 0].tolist())) == list(range(19))
    assert language.sections(ids, 5).tolist() == torch.arange(20).view(4, 5).tolist()


def test_next_letter_shifts_by_one() -> None:
    batch = language.next_letter(torch.tensor([[5, 6, 7]]))
    assert batch["x"].tolist() == [[BLANK, 5, 6]]
    assert batch["y"].tolist() == [[5, 6, 7]]


def test_causal_looks_back_only_and_bidirectional_everywhere() -> None:
    ids = torch.arange(8)[None]
    for model, later in ((causal(0, 8).eval(), False), (bidirectional(0, 8).eval(), True)):
        plain = model(ids)
        assert plain.shape == (1, 8, VOCABULARY)
        for place in range(8):
            changed = ids.clone()
            changed[0, place] = BLANK
            moved = (model(changed) - plain).abs().amax(-1)[0] > 1e-5
            assert moved[place:].all() if not later else moved.all()
            assert later or not moved[:place].any()


def test_learns_and_writes() -> None:
    text = manual(0)
    before = causal(0, 16, width=16, depth=1)
    start = bits_per_letter(before, text.test, 16)
    assert start == pytest.approx(math.log2(VOCABULARY), abs=0.6)
    model = language.learned(before, text.train, seed=0, steps=80, length=16, lr=1e-2)
    assert model is before
    assert not model.training
    assert bits_per_letter(model, text.test, 16) < 4.0  # below what the frequencies of the letters give
    out = generate(model, torch.full((2, 1), BLANK), 15, generator=torch.Generator().manual_seed(0))
    assert out.ids.shape == (2, 16)
