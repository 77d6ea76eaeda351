"""Policy gradients: the surrogate by loops, its gradient the score function, and the whole loop on a language model."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed import Recipe
from wellposed.objectives.confidence_penalty import ConfidencePenalty
from wellposed.papers.language import causal
from wellposed.parts.decoding import generate
from wellposed.tasks import Policy, answer_entropy, group_advantages, token_log_probs

B, T, V = 4, 6, 5


def written(seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and answers of 1 to 4 tokens after two of prompt, drawn from a policy a little different from these."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, T, V, generator=g, dtype=torch.float64)
    ids, places = torch.randint(V, (B, T), generator=g), torch.arange(T)
    mask = (places >= 2) & (places < 3 + torch.arange(B)[:, None])
    near = logits + 0.4 * torch.randn(B, T, V, generator=g, dtype=torch.float64)
    far = logits + torch.randn(B, T, V, generator=g, dtype=torch.float64)
    return logits, {
        "ids": ids,
        "mask": mask,
        "advantage": torch.tensor([1.0, -1.0, 0.5, -0.2], dtype=torch.float64),
        "sampled_log_probs": token_log_probs(near, ids, mask),
        "reference_log_probs": token_log_probs(far, ids, mask),
    }


class Table(nn.Module):
    """Gives the same logits whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits


def loss(task: Policy, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return task.loss(task.forward(Table(logits), batch), batch)


def by_loops(
    logits: Tensor, batch: dict[str, Tensor], clip: tuple[float, float] | None, kl: float
) -> list[list[float]]:
    """What each token of each answer costs."""
    rows = []
    for b in range(B):
        costs = []
        for t in range(1, T):
            if not batch["mask"][b, t]:
                continue
            log_prob = float(logits[b, t - 1].log_softmax(0)[batch["ids"][b, t]])
            a = float(batch["advantage"][b] if batch["advantage"].ndim == 1 else batch["advantage"][b, t])
            if clip is None:
                cost = -a * log_prob
            else:
                r = math.exp(log_prob - float(batch["sampled_log_probs"][b, t]))
                cost = -min(r * a, min(max(r, 1 - clip[0]), 1 + clip[1]) * a)
            ratio = math.exp(float(batch["reference_log_probs"][b, t]) - log_prob)
            costs.append(cost + kl * (ratio - math.log(ratio) - 1))
        rows.append(costs)
    return rows


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(("clip", "kl"), [((0.2, 0.2), 0.0), ((0.2, 0.3), 0.1), (None, 0.0), (None, 0.1)])
def test_loss_by_loops(clip: tuple[float, float] | None, kl: float, per_token: bool) -> None:
    logits, batch = written()
    if per_token:
        batch["advantage"] = torch.randn(B, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = by_loops(logits, batch, clip, kl)
    with torch.no_grad():
        mean, total = (loss(Policy(clip, kl=kl, average=a), logits, batch) for a in ("sequence", "sum"))
        tokens = Policy(clip, kl=kl, average="token")
        flat = tokens.mean_loss(tokens.forward(Table(logits), batch), batch)
    assert mean.tolist() == pytest.approx([sum(r) / len(r) for r in rows])
    assert total.tolist() == pytest.approx([sum(r) for r in rows])
    assert flat.item() == pytest.approx(sum(map(sum, rows)) / sum(map(len, rows)))


def test_some_ratios_are_clipped() -> None:
    logits, batch = written()
    ratio = (token_log_probs(logits, batch["ids"], batch["mask"]) - batch["sampled_log_probs"]).exp()[batch["mask"]]
    assert ((ratio > 1.2) | (ratio < 0.8)).any()
    assert ((ratio < 1.2) & (ratio > 0.8)).any()


@pytest.mark.parametrize(("clip", "kl"), [(0.2, 0.1), (None, 0.1)])
def test_gradient(clip: float | None, kl: float) -> None:
    logits, batch = written()
    task = Policy(clip, kl=kl)

    def rows(z: Tensor) -> Tensor:
        out = task.forward(lambda ids: z, batch)  # type: ignore[arg-type]
        return task.loss(out, batch)

    assert torch.autograd.gradcheck(rows, logits.requires_grad_())


def test_on_fresh_answers_every_clip_is_reinforce() -> None:
    """Where r = 1 the surrogate's gradient is that of -A log pi."""
    logits, batch = written()
    batch["sampled_log_probs"] = token_log_probs(logits, batch["ids"], batch["mask"])
    slopes = []
    for clip in (0.2, None):
        table = Table(logits)
        task = Policy(clip, average="sum")
        torch.autograd.backward(task.loss(task.forward(table, batch), batch).sum())
        slopes.append(table.logits.grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-14)


def test_the_expected_gradient_is_that_of_the_expected_reward() -> None:
    """REINFORCE, summed over all answers of two tokens with their probabilities; a baseline changes nothing."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 3, generator=g, dtype=torch.float64)
    answers = torch.tensor([[0, a, b] for a, b in product(range(3), repeat=2)])
    mask = torch.tensor([False, True, True]).expand(9, 3)
    reward = torch.rand(9, generator=g, dtype=torch.float64)

    def chances(z: Tensor) -> Tensor:
        return token_log_probs(z.expand(9, 3, 3), answers, mask).sum(1).exp()

    z = logits.clone().requires_grad_()
    (true,) = torch.autograd.grad((chances(z) * reward).sum(), z)
    for baseline in (0.0, 0.7):
        table = Table(logits)
        batch = {"ids": answers, "mask": mask, "advantage": reward - baseline}
        task = Policy(None, average="sum")
        out = task.forward(lambda ids, table=table: table.logits.expand(9, 3, 3), batch)  # type: ignore[arg-type]
        torch.autograd.backward((chances(logits) * task.loss(out, batch)).sum())
        torch.testing.assert_close(table.logits.grad, -true, rtol=0, atol=1e-14)


def test_divergence_estimate_is_unbiased_and_never_negative() -> None:
    g = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 1, 2, 7, generator=g, dtype=torch.float64)
    answers = torch.stack([torch.zeros(7).long(), torch.arange(7)], 1)
    mask = torch.tensor([False, True]).expand(7, 2)
    task = Policy(None, kl=1.0, reference=Table(other.expand(7, 2, 7)))
    batch = {"ids": answers, "mask": mask, "advantage": torch.zeros(7)}
    with torch.no_grad():
        found = task.forward(Table(logits.expand(7, 2, 7)), batch)["kl"][:, 1]
    p, q = logits[0, 0].softmax(0), other[0, 0].softmax(0)
    torch.testing.assert_close((p * found).sum(), (p * (p / q).log()).sum())
    assert (found >= 0).all()


def test_prompt_and_padding_do_not_count() -> None:
    logits, batch = written()
    changed = dict(batch)
    for key in ("sampled_log_probs", "reference_log_probs"):
        changed[key] = torch.where(batch["mask"], batch[key], torch.inf)
    changed["ids"] = torch.where(batch["mask"], batch["ids"], 0)
    changed["mask"] = batch["mask"].clone()
    changed["mask"][:, 0] = True  # nothing predicts the first token
    for clip in (0.2, None):
        task = Policy(clip, kl=0.1)
        with torch.no_grad():
            assert torch.equal(loss(task, logits, changed), loss(task, logits, batch))
    assert torch.equal(Policy(average="token").weight(changed), batch["mask"].sum(1))  # type: ignore[arg-type]


def test_what_was_computed_beforehand_has_no_gradient() -> None:
    """Log-probabilities of this very model, computed without `no_grad`, would cancel in the ratio."""
    logits, batch = written()
    task, slopes = Policy(kl=0.1), []
    for held in (True, False):
        table = Table(logits)
        own = token_log_probs(table.logits, batch["ids"], batch["mask"])
        known = own.detach() if held else own
        given = batch | {"sampled_log_probs": known, "reference_log_probs": known - 1, "advantage": known.sum(1)}
        torch.autograd.backward(task.loss(task.forward(table, given), given).sum())
        slopes.append(table.logits.grad)
    assert slopes[0] is not None
    assert slopes[0].any()
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0, atol=0)


@pytest.mark.parametrize("average", ["sequence", "token", "sum"])
def test_microbatches_are_the_large_batch(average: Any) -> None:
    _, batch = written()
    batch["mask"][1] = False  # an empty answer
    windows = [batch], [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 1), slice(1, 2), slice(2, 4))]
    found = []
    for window in windows:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V)).double()
        Recipe().attach(model, Policy(kl=0.1, average=average)).step(
            window, torch.optim.SGD(model.parameters(), lr=0.1)
        )
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-14)


def test_32_bit_ids_and_a_reference_in_half_precision() -> None:
    _, batch = written()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V))
    batch["ids"] = batch["ids"].int()
    recipe = Recipe().attach(model, Policy(kl=0.1, reference=deepcopy(model).bfloat16()))
    assert recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1))["task"].isfinite()


# ---- advantages
def test_group_advantages_by_loops() -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0, 3.0, 3.0, 0.0])
    for scale, leave in product((False, True), repeat=2):
        expected = []
        for i in range(6):
            mine = rewards[i // 3 * 3 : i // 3 * 3 + 3]
            rest = [float(mine[j]) for j in range(3) if not leave or j != i % 3]
            spread = float(mine.std()) + 1e-4 if scale else 1.0
            expected.append((float(rewards[i]) - sum(rest) / len(rest)) / spread)
        found = group_advantages(rewards, 3, scale=scale, leave_one_out=leave)
        assert found.tolist() == pytest.approx(expected)
        order = torch.tensor([5, 0, 3, 1, 4, 2])
        labels = torch.tensor([8, 8, 8, 2, 2, 2])
        shuffled = group_advantages(rewards[order], labels[order], scale=scale, leave_one_out=leave)
        torch.testing.assert_close(shuffled, found[order])


def test_equal_rewards_and_single_answers_teach_nothing() -> None:
    for reward in (0.1, 1000.1, -12345.678):  # rounding is not blown up
        assert torch.equal(group_advantages(torch.full((21,), reward), 7), torch.zeros(21))
    assert torch.equal(group_advantages(torch.randn(3), 1), torch.zeros(3))
    assert group_advantages(torch.tensor([1, 0, 1, 1]), 2).dtype == torch.float32
    assert not group_advantages(torch.randn(4, requires_grad=True), 2).requires_grad


def test_entropy_by_loops() -> None:
    logits, batch = written()
    for b in range(B):
        each = [
            -(logits[b, t - 1].softmax(0) * logits[b, t - 1].log_softmax(0)).sum()
            for t in range(1, T)
            if batch["mask"][b, t]
        ]
        found = answer_entropy(logits, batch["mask"])[b]
        torch.testing.assert_close(found, torch.stack(each).mean())
    sure = torch.full((1, 2, 3), -torch.inf)
    sure[..., 0] = 0
    assert answer_entropy(sure, torch.ones(1, 2)) == 0


def test_entropy_has_a_gradient_where_a_probability_is_0() -> None:
    logits = torch.tensor([[[0.0, -1000.0, -torch.inf, 1.0], [0.0] * 4]], requires_grad=True)
    (found,) = torch.autograd.grad(answer_entropy(logits, torch.ones(1, 2)).sum(), logits)
    likely = torch.tensor([0.0, 1.0], requires_grad=True)
    (expected,) = torch.autograd.grad(torch.special.entr(likely.softmax(0)).sum(), likely)
    torch.testing.assert_close(found[0, 0, [0, 3]], expected)
    assert (found[0, 0, 1:3] == 0).all()


# ---- the whole loop
@dataclass
class Answer:
    """What a Hugging Face model returns, as far as it matters."""

    logits: Tensor


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Answer:
        return Answer(self.model(ids))


@pytest.mark.parametrize("output", ["tensor", "object"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"clip": None, "average": "sum"}, {"kl": 0.05, "average": "token"}],
    ids=["grpo", "reinforce", "kl"],
)
def test_sample_reward_step(settings: dict[str, Any], output: str) -> None:
    """Answers rewarded for the letter a come to hold more of it."""
    model: nn.Module = causal(0, 12, width=16, depth=1)
    if output == "object":
        model = Wrapped(model)
    g = torch.Generator().manual_seed(0)
    if "kl" in settings:
        settings = settings | {"reference": model}
    recipe = Recipe().attach(model, Policy(**settings))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    prompts = torch.tensor([[3, 4, 0], [5, 6, 7]])
    real = torch.tensor([[True, True, False], [True, True, True]])
    shares = []
    for _ in range(15):
        answers = generate(model, prompts, 6, mask=real, group=8, stop=0, generator=g)
        reward = ((answers.ids == 1) & answers.sampled).sum(1).float()
        shares.append(float(reward.mean()))
        batch = {"ids": answers.ids, "mask": answers.sampled, "advantage": group_advantages(reward, 8)}
        if settings.get("clip", 0.2) is not None:
            batch["sampled_log_probs"] = answers.log_probs
        recipe.step(batch, optimizer)
    assert sum(shares[-3:]) > 3 * sum(shares[:3])


def test_what_was_sampled_has_the_log_probs_of_the_task() -> None:
    """Ratios on fresh answers are 1: sampling and training agree on which token is whose."""
    model = causal(0, 12, width=16, depth=1)
    answers = generate(model, torch.tensor([[3, 4]]), 5, group=4, stop=0, generator=torch.Generator().manual_seed(0))
    batch = {"ids": answers.ids, "mask": answers.sampled, "advantage": torch.zeros(4)}
    with torch.no_grad():
        out = Policy(None).forward(model, batch)
    torch.testing.assert_close(out["log_probs"], answers.log_probs, rtol=0, atol=1e-5)


def test_an_entropy_bonus_is_a_method_beside_it() -> None:
    """The confidence penalty on the answers' tokens; with no reward to earn it drives the policy to uniform."""
    logits, batch = written()
    batch["advantage"] = torch.zeros(B, dtype=torch.float64)
    model = Table(logits)
    recipe = Recipe(ConfidencePenalty(strength=1.0)).attach(model, Policy())
    terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=1.0))
    torch.testing.assert_close(terms["ConfidencePenalty"], -answer_entropy(logits, batch["mask"]).mean())
    assert torch.equal(model.logits[:, -1], logits[:, -1]), "nothing follows the last token"
    assert (answer_entropy(model.logits, batch["mask"]) > answer_entropy(logits, batch["mask"])).all()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: Policy(0.0), "clip must be in"),
        (lambda: Policy((1.5, 0.2)), "clip must be in"),
        (lambda: Policy(kl=-1), "kl must be at least 0"),
        (lambda: Policy(reference=nn.Identity()), "a reference needs kl above 0"),
        (lambda: Policy(average="mean"), "average must be"),  # type: ignore[arg-type]
        (lambda: group_advantages(torch.zeros(4, 1), 2), r"one number for each answer, \(B,\), got shape \(4, 1\)"),
        (lambda: group_advantages(torch.zeros(5), 2), "5 rows do not make groups of 2"),
        (lambda: group_advantages(torch.zeros(5), torch.zeros(2)), "a label for each of 5 rows"),
    ],
)
def test_bad_settings(call: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        call()
