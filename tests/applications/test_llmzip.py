"""Compression by language models: the coder, the counts, files and what damages them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wellposed.applications._arithmetic import TOTAL, Decoder, Encoder, integer_law
from wellposed.applications.llmzip import (
    CausalPredictor,
    WittenBell,
    codelength,
    lm_compress,
    lm_decompress,
    symbol_ranks,
)
from wellposed.papers.language import BLANK, causal, encoded

TEXT = b"the cat sat on the mat; the dog sat on the cat. " * 3
LETTERS = encoded("a language model predicts the next letter and the coder spends bits on what it did not expect")


def fixed_law(history: Sequence[int]) -> list[float]:
    """A law of four symbols that turns with the last one."""
    p = [0.7, 0.2, 0.1, 0.0]
    turn = history[-1] if history else 0
    return p[turn:] + p[:turn]


def some_symbols(count: int, seed: int = 0) -> list[int]:
    rng, found = np.random.default_rng(seed), [0]
    for _ in range(count):
        law = np.array(fixed_law(found))
        found.append(int(rng.choice(4, p=law)))
    return found[1:]


# ---- the coder
def test_integer_laws_are_near_and_never_zero() -> None:
    p = np.random.default_rng(0).dirichlet(np.full(1000, 0.05))
    counts = integer_law(p)
    assert counts.sum() == TOTAL
    assert counts.min() >= 1
    assert np.abs(counts / TOTAL - p).max() <= 1001 / TOTAL  # one for each symbol, taken from all
    assert integer_law([1.0]).tolist() == [TOTAL]
    assert integer_law([0.0, 1.0, 0.0]).tolist() == [1, TOTAL - 2, 1]


@pytest.mark.parametrize("law", [[0.5, 0.4], [1.5, -0.5], [math.nan, 1.0], [], [[1.0]]])
def test_what_is_no_law_gets_its_sentence(law: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        integer_law(law)


def test_the_code_is_a_point_of_the_exact_interval() -> None:
    """Arithmetic coding as it is defined, with fractions: the bits, whatever follows them, stay in the interval."""
    for seed in range(5):
        low, width, coder, history = Fraction(0), Fraction(1), Encoder(), [0]
        symbols = some_symbols(20, seed)
        for symbol in symbols:
            counts = integer_law(fixed_law(history))
            coder.encode(counts, symbol)
            low += width * Fraction(int(counts[:symbol].sum()), TOTAL)
            width *= Fraction(int(counts[symbol]), TOTAL)
            history.append(symbol)
        coder.finish()
        bits = len(coder.bits)
        point = Fraction(int("".join(map(str, coder.bits)), 2), 2**bits)
        slack = 20 * Fraction(1, 2**59)  # every cut rounds both ends to 60 bits
        assert slack < width / 1000
        assert low - slack <= point
        assert point + Fraction(1, 2**bits) <= low + width + slack
        assert bits <= -math.log2(width) + 2 + 0.01


def test_shares_of_the_smallest_count_come_back() -> None:
    """The carry that waits for its bit longest: a middle that is straddled for hundreds of symbols."""
    counts = integer_law([0.5 - 1e-9, 2e-9, 0.5 - 1e-9])
    symbols = [1] * 200 + [0, 2] * 50 + [1] * 50
    coder = Encoder()
    for symbol in symbols:
        coder.encode(counts, symbol)
    decoder = Decoder(coder.finish())
    assert [decoder.decode(counts) for _ in symbols] == symbols


# ---- counts
def test_witten_bell_by_counting() -> None:
    text, order = list(b"abracadabra abracad"), 3

    def law(context: tuple[int, ...]) -> np.ndarray:
        shorter = law(context[1:]) if context else np.full(256, 1 / 256)
        spots = range(len(context), len(text))
        after = Counter(text[i] for i in spots if tuple(text[i - len(context) : i]) == context)
        if not after:
            return shorter
        counts = np.zeros(256)
        for symbol, count in after.items():
            counts[symbol] = count
        return (counts + len(after) * shorter) / (counts.sum() + len(after))

    model = WittenBell(order=order)
    model.start()
    for symbol in text:
        model.see(symbol)
    np.testing.assert_allclose(model.law(), law(tuple(text[-order:])), rtol=1e-13)
    assert abs(model.law().sum() - 1) < 1e-13


def test_start_unlearns_the_text_and_keeps_the_training() -> None:
    model = WittenBell(order=2).learn(b"abcab")
    known, first = {c: dict(a) for c, a in model.counts.items()}, model.law()
    codelength(b"abxabyab", model)
    assert model.counts != known
    model.start()
    assert model.counts == known
    assert np.array_equal(model.law(), first)
    fresh = WittenBell(order=2)
    codelength(b"hello", fresh)
    fresh.start()
    assert not fresh.counts


def test_less_smoothing_costs_more() -> None:
    assert codelength(TEXT, WittenBell(smoothing=1e-3)) > 1.5 * codelength(TEXT, WittenBell())


# ---- files
@pytest.mark.parametrize("mode", ["arithmetic", "ranks"])
@pytest.mark.parametrize("text", [b"", b"x", TEXT, bytes(range(256)) * 2, b"\0" * 3000])
def test_round_trip(mode: str, text: bytes) -> None:
    model = WittenBell(order=3).learn(b"the dog")
    file = lm_compress(text, model, mode)  # type: ignore[arg-type]
    assert bytes(lm_decompress(file, model).tolist()) == text
    again = WittenBell(order=3).learn(b"the dog")
    assert lm_compress(text, again, mode) == file  # type: ignore[arg-type]


def test_files_are_as_long_as_the_quantised_law_says() -> None:
    for seed in range(5):
        symbols = some_symbols(500, seed)
        bits = codelength(symbols, fixed_law, quantised=True)
        file = 8 * (len(lm_compress(symbols, fixed_law)) - 15)  # 13 bytes, and two that say how many symbols
        assert bits - 1 < file < bits + 2 + 8  # up to 7 bits fill the last byte
        assert codelength(symbols, fixed_law) == pytest.approx(bits, abs=500 * 4 / 2**27)
    surprise = [3, 0, 0]  # impossible at first: 30 bits, not endless
    assert codelength(surprise, fixed_law) == math.inf
    assert codelength(surprise, fixed_law, quantised=True) > 30
    assert lm_decompress(lm_compress(surprise, fixed_law), fixed_law).tolist() == surprise


def test_ranks() -> None:
    # laws 0.7 0.2 0.1 0, the same after 0, 0.2 0.1 0 0.7 after 1, 0.1 0 0.7 0.2 after 2
    assert symbol_ranks([0, 1, 2, 2, 3], fixed_law).tolist() == [0, 1, 3, 0, 1]
    tied = symbol_ranks([2, 0], lambda history: [0.25] * 4)
    assert tied.tolist() == [2, 0]


def test_many_symbols() -> None:
    def near(history: Sequence[int]) -> np.ndarray:
        p = np.full(5000, 0.1 / 4999)
        p[(history[-1] + 1) % 5000 if history else 0] = 0.9
        return p

    symbols = [0, 1, 2, 3, 4700, 4701, 300, 301]
    for mode in ("arithmetic", "ranks"):
        assert lm_decompress(lm_compress(symbols, near, mode), near).tolist() == symbols


# ---- what goes wrong
def test_every_damage_is_told() -> None:
    model = WittenBell(order=2)
    file = lm_compress(TEXT, model)
    for at in range(len(file)):
        bad = file[:at] + bytes([file[at] ^ 4]) + file[at + 1 :]
        with pytest.raises(ValueError, match="no data of lm_compress" if at < 4 else "damaged"):
            lm_decompress(bad, model)
        with pytest.raises(ValueError, match="no data of lm_compress" if at < 4 else "damaged"):
            lm_decompress(file[:at], model)
    with pytest.raises(ValueError, match="damaged"):
        lm_decompress(file + b"\0", model)


def test_another_model_is_told() -> None:
    file = lm_compress(TEXT, WittenBell(order=2))
    for other in (WittenBell(order=3), WittenBell(order=2).learn(b"the"), WittenBell(symbols=120, order=2)):
        with pytest.raises(ValueError, match="another one"):
            lm_decompress(file, other)
    ranks = lm_compress(TEXT, WittenBell(order=2), "ranks")
    for other in (WittenBell(order=3), WittenBell(symbols=100, order=2)):  # 100: of other order, of too few symbols
        with pytest.raises(ValueError, match="another one"):
            lm_decompress(ranks, other)


def test_bad_input_gets_its_sentence() -> None:
    with pytest.raises(ValueError, match="symbol 27 at place 1: the model knows 0 to 26"):
        lm_compress([3, 27], WittenBell(27))
    for text in ([3, 40], [3, -1]):
        with pytest.raises(ValueError, match="at place 1: the model knows 0 to 27"):
            codelength(text, CausalPredictor(causal(0, 9, width=16, depth=1), BLANK, memory=8))
    for mode in ("arithmetic", "ranks"):
        with pytest.raises(ValueError, match="sum to 1"):
            lm_compress([0, 1], lambda history: [2.0, -1.0], mode)
    with pytest.raises(ValueError, match="sum to 1"):
        codelength([0, 1], lambda history: [2.0, 2.0])
    with pytest.raises(ValueError, match="symbol -1"):
        codelength([-1], WittenBell(27))
    with pytest.raises(ValueError, match="not text"):
        lm_compress("text", WittenBell())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ids \(N,\)"):
        lm_compress(torch.rand(3), WittenBell())
    with pytest.raises(ValueError, match="mode"):
        lm_compress(b"", WittenBell(), "zip")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="CausalPredictor"):
        lm_compress(b"", nn.Linear(2, 2))
    with pytest.raises(TypeError, match="expected a predictor"):
        lm_compress(b"", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integer"):
        lm_compress([0.5], WittenBell())  # type: ignore[list-item]
    with pytest.raises(ValueError, match="smoothing"):
        WittenBell(smoothing=0.0)
    with pytest.raises(ValueError, match="memory"):
        CausalPredictor(nn.Linear(2, 2), 0, 0)


# ---- nets
def test_a_transformer_compresses_and_gives_back() -> None:
    model = causal(0, 17, width=16, depth=1, dropout=0.5).train()
    predictor = CausalPredictor(model, start_id=BLANK, memory=16)
    for mode in ("arithmetic", "ranks"):
        file = lm_compress(LETTERS, predictor, mode)
        assert torch.equal(lm_decompress(file, predictor), LETTERS)
    assert model.training


@pytest.mark.parametrize("letters", [0, 1, 8, 9, 10, len(LETTERS)])
def test_passes_of_many_places_agree_with_one_by_one(letters: int) -> None:
    text = LETTERS[:letters]
    predictor = CausalPredictor(causal(0, 9, width=16, depth=1).double(), BLANK, memory=8)
    one_by_one = 0.0
    predictor.start()
    for symbol in text.tolist():
        one_by_one -= math.log2(predictor.law()[symbol])
        predictor.see(symbol)
    assert codelength(text, predictor) == pytest.approx(one_by_one, abs=1e-9)
    assert codelength(text, predictor, quantised=True) == pytest.approx(one_by_one, abs=1e-3)


def test_objects_with_logits_and_nets_without_parameters() -> None:
    class Successor(nn.Module):
        def forward(self, ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=20.0 * nn.functional.one_hot((ids + 1) % 8, 8))

    predictor = CausalPredictor(Successor(), start_id=7, memory=3)
    text = list(range(8)) * 4
    assert len(lm_compress(text, predictor)) < 18
    assert codelength(text, predictor) < 1e-4
    assert lm_decompress(lm_compress(text, predictor), predictor).tolist() == text
