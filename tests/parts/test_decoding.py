"""Sampling from causal language models."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wellposed.parts.decoding import compacted, generate, restricted_log_probs
from wellposed.tasks import sequence_log_probs


class Mixer(nn.Module):
    """A causal model with dropout: logits from the mean of the tokens so far, and from the last one."""

    def __init__(self, ids: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.last, self.all = nn.Embedding(ids, ids), nn.Embedding(ids, ids)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        return self.dropout(self.last(x) + 2 * self.all(x).cumsum(1) / count)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the law of one token
def test_restrictions_by_hand() -> None:
    p = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    logits = p.log() + 3

    def found(**how: float) -> list[float]:
        return restricted_log_probs(logits, **how).exp().tolist()  # type: ignore[arg-type]

    assert found() == pytest.approx(p.tolist())
    squares = p.square() / p.square().sum()
    assert found(temperature=0.5) == pytest.approx(squares.tolist())
    assert found(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert found(top_p=0.69) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert found(top_p=0.71) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    assert found(top_k=3, top_p=0.5) == pytest.approx([0, 4 / 7, 0, 3 / 7])  # of what top_k left: 4/9 < 0.5
    assert found(top_p=1e-6) == [0, 1, 0, 0]
    assert found(temperature=0.0) == [0, 1, 0, 0]
    assert found(top_k=9, top_p=1.0) == pytest.approx(p.tolist())


def test_temperatures_of_every_size() -> None:
    logits = torch.tensor([80.0, 100.0, -torch.inf, 99.0])
    assert restricted_log_probs(logits, 1e-37).exp().tolist() == [0, 1, 0, 0]
    assert restricted_log_probs(logits, 1e37).exp().tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])


def test_ties_do_not_widen_top_k() -> None:
    assert (restricted_log_probs(torch.zeros(3, 8), top_k=3) > -math.inf).sum(-1).tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_numbers_out_of_range(how: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        restricted_log_probs(torch.zeros(4), **how)  # type: ignore[arg-type]


# ---- padding
def test_compacted_keeps_the_order() -> None:
    ids = torch.tensor([[9, 9, 1, 2], [1, 2, 9, 9], [9, 1, 2, 3]])
    found, lengths = compacted(ids, ids != 9, pad=7)
    assert found.tolist() == [[1, 2, 7, 7], [1, 2, 7, 7], [1, 2, 3, 7]]
    assert lengths.tolist() == [2, 2, 3]


def test_padding_of_either_side_changes_nothing() -> None:
    model = Mixer().double()
    left, right = torch.tensor([[4, 4, 1, 2], [3, 0, 2, 1]]), torch.tensor([[1, 2, 4, 4], [3, 0, 2, 1]])
    a = generate(model, left, 6, mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), generator=draws(), pad=4)
    b = generate(model, right, 6, mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]), generator=draws(), pad=0)
    assert torch.equal(a.ids[a.sampled], b.ids[b.sampled])
    assert torch.equal(a.log_probs, b.log_probs)
    alone = generate(model, torch.tensor([[1, 2]]), 6, temperature=0.0)
    mixed = generate(model, left, 6, mask=left != 4, temperature=0.0)
    assert torch.equal(alone.ids[0], mixed.ids[0, :8])
    torch.testing.assert_close(alone.log_probs[0], mixed.log_probs[0, :8], rtol=0, atol=1e-14)


# ---- sampling
def test_log_probs_are_those_of_a_second_look() -> None:
    model = Mixer().double()
    ids = torch.tensor([[1, 2, 0], [3, 1, 4]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    out = generate(model, ids, 5, mask=mask, group=3, generator=draws(), stop=2)
    again = sequence_log_probs(model(out.ids), out.ids, out.sampled)
    torch.testing.assert_close(out.log_probs.sum(1), again, rtol=0, atol=1e-13)
    assert torch.equal(out.log_probs, out.drawn_log_probs)  # no temperature, no restriction
    assert (out.log_probs[out.sampled] < 0).all()
    assert (out.log_probs[~out.sampled] == 0).all()
    cold = generate(model, ids, 5, mask=mask, group=3, generator=draws(), temperature=0.5, top_k=2)
    for logits, row, sampled, drawn in zip(
        model(cold.ids).detach(), cold.ids, cold.sampled, cold.drawn_log_probs, strict=True
    ):
        for t in sampled.nonzero()[:, 0].tolist():
            top = (2 * logits[t - 1]).topk(2)
            assert row[t] in top.indices
            mine = 2 * logits[t - 1, row[t]] - top.values.logsumexp(0)
            assert drawn[t] == pytest.approx(float(mine), abs=1e-13)
    again = sequence_log_probs(model(cold.ids), cold.ids, cold.sampled)
    torch.testing.assert_close(cold.log_probs.sum(1), again, rtol=0, atol=1e-13)


def test_frequencies_are_the_laws() -> None:
    """Two tokens after one prompt: 20000 draws against the exact joint law."""
    model, rows = Mixer(ids=3).double(), 20_000
    out = generate(model, torch.tensor([[1]]), 2, group=rows, generator=draws())
    code = out.ids[:, 1] * 3 + out.ids[:, 2]
    found = torch.bincount(code, minlength=9).double() / rows
    for a, b in itertools.product(range(3), repeat=2):
        logits = model(torch.tensor([[1, a]]))[0].log_softmax(-1).detach()
        p = float((logits[0, a] + logits[1, b]).exp())
        assert abs(float(found[3 * a + b]) - p) < 4.5 * math.sqrt(p * (1 - p) / rows)


def test_stop_tokens_end_rows_and_the_loop() -> None:
    def successor(ids: Tensor) -> SimpleNamespace:  # t is followed by t + 1; outputs as a Hugging Face model's
        return SimpleNamespace(logits=100 * nn.functional.one_hot((ids + 1) % 10, 10).double())

    out = generate(successor, torch.tensor([[1, 2], [3, 4]]), 20, stop=(6, 7), pad=9, generator=draws())
    assert out.ids.tolist() == [[1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 9, 9]]
    assert out.sampled.tolist() == [[False, False, True, True, True, True], [False, False, True, True, False, False]]
    ids, real = out.continuations(pad=-1)
    assert ids.tolist() == [[3, 4, 5, 6], [5, 6, -1, -1]]
    assert torch.equal(real, ids != -1)


def test_ids_of_32_bits_and_a_stop_from_numpy() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    plain = generate(Mixer(), ids, 6, stop=3, generator=draws())
    found = generate(Mixer(), ids.int(), 6, stop=np.int64(3), generator=draws())  # type: ignore[arg-type]
    assert found.ids.dtype == torch.int32
    assert torch.equal(found.ids, plain.ids)


def test_ragged_continuations_line_up() -> None:
    def successor(ids: Tensor) -> Tensor:
        return 100 * nn.functional.one_hot((ids + 1) % 20, 20).double()

    ids = torch.tensor([[0, 0, 5], [1, 2, 3]])
    out = generate(successor, ids, 3, mask=torch.tensor([[0, 0, 1], [1, 1, 1]]), group=2, generator=draws())
    assert out.lengths.tolist() == [1, 1, 3, 3]
    assert out.continuations()[0].tolist() == [[6, 7, 8], [6, 7, 8], [4, 5, 6], [4, 5, 6]]


def test_evaluation_mode_for_the_time_and_no_gradient() -> None:
    model = Mixer(dropout=0.5).train()
    a = generate(model, torch.tensor([[1]]), 4, temperature=0.0)
    b = generate(model, torch.tensor([[1]]), 4, temperature=0.0)
    assert torch.equal(a.log_probs, b.log_probs)
    assert model.training
    assert model.dropout.training
    assert not a.log_probs.requires_grad


class Remembering(Mixer):
    """The same with outputs as a Hugging Face model's, and a memory of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor, past_key_values: Tensor | None = None) -> Any:
        self.seen.append(x.shape[1])
        x = x if past_key_values is None else torch.cat([past_key_values, x], 1)
        logits = super().forward(x)
        return SimpleNamespace(logits=logits[:, -1:] if past_key_values is not None else logits, past_key_values=x)


def test_a_model_with_memory_sees_each_token_once() -> None:
    ids, model = torch.tensor([[1, 2, 0], [3, 1, 4]]), Remembering().double()
    plain = generate(Mixer().double(), ids, 6, group=2, generator=draws(), stop=0)
    found = generate(model, ids, 6, group=2, generator=draws(), stop=0)
    assert torch.equal(found.ids, plain.ids)
    torch.testing.assert_close(found.log_probs, plain.log_probs, rtol=0, atol=1e-14)
    assert model.seen == [3, 1, 1, 1, 1, 1][: len(model.seen)]
    assert len(model.seen) > 2


def test_a_model_with_memory_reads_on_while_shorter_prompts_are_continued() -> None:
    ids, mask = torch.tensor([[0, 0, 3], [0, 1, 2], [3, 1, 4]]), torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 1]])
    for stop in (None, 2):
        model = Remembering().double()
        plain = generate(Mixer().double(), ids, 4, mask=mask, temperature=0.0, stop=stop)
        found = generate(model, ids, 4, mask=mask, temperature=0.0, stop=stop)
        assert torch.equal(found.ids, plain.ids)
        assert torch.equal(found.sampled, plain.sampled)
        torch.testing.assert_close(found.log_probs, plain.log_probs, rtol=0, atol=1e-14)
        assert set(model.seen) == {1}
        assert len(model.seen) <= 6
    warm = generate(Remembering().double(), ids, 4, mask=mask, group=2, generator=draws())
    again = sequence_log_probs(Mixer().double()(warm.ids), warm.ids, warm.sampled)
    torch.testing.assert_close(warm.log_probs.sum(1), again, rtol=0, atol=1e-13)


def test_what_a_prompt_might_have_said_does_not_end_it() -> None:
    def successor(ids: Tensor, past_key_values: int = 0) -> SimpleNamespace:
        logits = 100 * nn.functional.one_hot((ids + 1) % 10, 10).double()
        return SimpleNamespace(logits=logits, past_key_values=1)

    ids, mask = torch.tensor([[5, 0, 0], [1, 2, 6]]), torch.tensor([[1, 0, 0], [1, 1, 1]])
    out = generate(successor, ids, 2, mask=mask, stop=3, pad=9, generator=draws())  # 1 2 would go on with 3
    assert out.ids.tolist() == [[5, 6, 7, 9, 9], [1, 2, 6, 7, 8]]


def test_a_short_prompt_may_be_continued_for_longer() -> None:
    def successor(ids: Tensor) -> Tensor:
        return 100 * nn.functional.one_hot((ids + 1) % 10, 10).double()

    ids = torch.tensor([[1, 0, 0], [4, 5, 6]])
    out = generate(successor, ids, 9, mask=torch.tensor([[1, 0, 0], [1, 1, 1]]), stop=7, pad=9, generator=draws())
    assert out.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 9, 9, 9]]
    assert out.continuations(pad=-1)[0].tolist() == [[2, 3, 4, 5, 6, 7], [7, -1, -1, -1, -1, -1]]
    short = generate(successor, ids, 9, mask=torch.tensor([[1, 0, 0], [1, 1, 1]]), stop=(2, 7, 8), generator=draws())
    assert short.ids.tolist() == [[1, 2, 0, 0], [4, 5, 6, 7]]
    assert short.continuations()[0].tolist() == [[2], [7]]


def test_half_precision_scores_are_float32() -> None:
    out = generate(Mixer().bfloat16(), torch.tensor([[1]]), 3, generator=draws())
    assert out.log_probs.dtype == torch.float32


def test_bad_prompts_get_their_sentence() -> None:
    model, ids = Mixer(), torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="nothing to continue"):
        generate(model, ids, 3, mask=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="nothing to continue"):
        generate(model, ids[:0], 3)
    with pytest.raises(ValueError, match=r"shape \(B, T\)"):
        generate(model, ids[0], 3)
    with pytest.raises(ValueError, match=r"shape \(B, T\)"):
        generate(model, ids.float(), 3)
    with pytest.raises(ValueError, match="the mask has shape"):
        generate(model, ids, 3, mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match="at least 1"):
        generate(model, ids, 0)
