"""Regularized preference optimization: the term by loops, TRL's variant, and the game whose solution it is."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.alignment.rpo import RPO, Average, answer_nll
from wellposed.tasks import Prefer, dpo_loss, sequence_log_probs

B, T, V = 5, 6, 7


def answers() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, ids, and answers of 1 to 5 tokens after one token of prompt."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(B, T, V, generator=g, dtype=torch.float64)
    places = torch.arange(T)
    mask = (places >= 1) & (places <= 1 + torch.arange(B)[:, None])
    return logits, torch.randint(V, (B, T), generator=g), mask


def test_value_by_explicit_loops() -> None:
    logits, ids, mask = answers()
    expected = []
    for b in range(B):
        nll = [-logits[b, t - 1].log_softmax(0)[ids[b, t]] for t in range(1, T) if mask[b, t]]
        expected.append(sum(nll) / len(nll))
    found = answer_nll(sequence_log_probs(logits, ids, mask), mask)
    torch.testing.assert_close(found, torch.stack(expected))  # type: ignore[arg-type]


def test_token_average_is_trls() -> None:
    """TRL: cross-entropy over the flattened batch, prompt and padding marked -100."""
    logits, ids, mask = answers()
    labels = ids.masked_fill(~mask, -100)
    trl = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    log_probs = sequence_log_probs(logits, ids, mask)
    torch.testing.assert_close(answer_nll(log_probs, mask, "token").mean(), trl)
    assert abs(answer_nll(log_probs, mask).mean() - trl) > 0.01, "answers of several lengths tell the two apart"


def test_prompt_and_padding_do_not_count() -> None:
    logits, ids, mask = answers()
    other = torch.where(mask, ids, (ids + 1) % V)
    first = mask.clone()
    first[:, 0] = True  # nothing predicts the first token
    for average in ("sequence", "token"):
        rows = answer_nll(sequence_log_probs(logits, ids, mask), mask, average)
        assert torch.equal(answer_nll(sequence_log_probs(logits, other, mask), mask, average), rows)
        assert torch.equal(answer_nll(sequence_log_probs(logits, ids, first), first, average), rows)


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_an_answer_without_tokens_costs_nothing(average: Average) -> None:
    assert torch.equal(answer_nll(torch.zeros(2), torch.zeros(2, 4), average), torch.zeros(2))


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_gradient(average: Average) -> None:
    logits, ids, mask = answers()
    assert torch.autograd.gradcheck(
        lambda z: answer_nll(sequence_log_probs(z, ids, mask), mask, average), logits.requires_grad_()
    )


def test_closed_form_of_the_adversarial_game() -> None:
    """max over policies of eta E[r(a) - r(a0) - beta KL] + L_D(r) is DPO of the soft-optimal policy plus imitation.

    One context: any reward r has the best response pi_r = ref exp(r / beta) / Z, with value beta log Z.
    """
    g = torch.Generator().manual_seed(1)
    eta, beta = 0.3, 0.7
    reward = torch.randn(9, generator=g, dtype=torch.float64)
    ref, base = (torch.rand(2, 9, generator=g, dtype=torch.float64) + 0.1).log_softmax(-1).exp()
    won, lost = torch.randint(9, (2, 40), generator=g)

    z = (ref * (reward / beta).exp()).sum()
    pi = ref * (reward / beta).exp() / z
    kl = (pi * (pi / ref).log()).sum()
    game = (
        eta * ((pi * reward).sum() - (base * reward).sum() - beta * kl)
        - F.logsigmoid(reward[won] - reward[lost]).mean()
    )

    ratio = (pi / ref).log()
    practical = dpo_loss(ratio[won] - ratio[lost], beta).mean()
    one_token = torch.tensor([False, True]).expand(9, 2)
    imitation = (base * answer_nll(pi.log(), one_token)).sum()
    torch.testing.assert_close(game, practical + eta * beta * (imitation + (base * ref.log()).sum()))


class Output(nn.Module):
    """A causal transformer that answers with an object, as Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, V)

    def forward(self, ids: Tensor) -> SimpleNamespace:
        causal = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=self.head.weight.dtype)
        return SimpleNamespace(logits=self.head(self.block(self.embed(ids), causal, is_causal=True)))


def test_holds_the_chosen_answers_up() -> None:
    """DPO lets log pi(chosen) go wherever the margin grows; with the term it ends higher."""
    _, ids, mask = answers()
    g = torch.Generator().manual_seed(2)
    batch = {
        "chosen": ids, "chosen_mask": mask,
        "rejected": torch.where(mask, torch.randint(V, (B, T), generator=g), ids), "rejected_mask": mask,
    }  # fmt: skip
    ended = {}
    for strength in (0.0, 0.5):
        torch.manual_seed(3)
        model = Output()
        recipe = wp.Recipe(RPO(strength=strength)).attach(model, Prefer(model, beta=0.1), example=batch)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        terms = [recipe.step(batch, optimizer) for _ in range(30)][-1]
        assert terms["task"] < math.log(2)
        ended[strength] = recipe.task.forward(model, batch)["chosen_log_probs"].mean()
    assert ended[0.5] > ended[0.0] + 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="average must be 'sequence' or 'token', got 'answer'"):
        RPO(average="answer")  # type: ignore[arg-type]
    with pytest.raises(wp.RecipeError, match="RPO needs 'chosen_log_probs'"):
        wp.Recipe(RPO()).attach(nn.Linear(2, 2), wp.Classify(classes=2))
