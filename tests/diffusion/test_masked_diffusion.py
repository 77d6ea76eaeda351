"""Masked diffusion: parameterisation, schedules, bound, sampler."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.diffusion.masked_diffusion import MaskedDiffusion, hidden_share, hiding_rate, subs_logits
from wellposed.papers.claims.mdlm import Conditionals, exact_nelbo
from wellposed.papers.nets import Transformer, seeded

L, V = 3, 3
MASK = V


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def law(seed: int = 0, length: int = L) -> Tensor:
    """A random joint law over V^L, shape (V, ..., V), float64."""
    p = torch.rand((V,) * length, generator=draws(seed), dtype=torch.float64)
    return p / p.sum()


def square(t: Tensor) -> Tensor:
    return t**2


# ---- schedules
@pytest.mark.parametrize("schedule", ["loglinear", "cosine", square])
def test_rate_is_the_logarithmic_derivative_of_the_share(schedule: Any) -> None:
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    share = hidden_share(t, schedule)
    [slope] = torch.autograd.grad(share.log().sum(), t)
    torch.testing.assert_close(hiding_rate(t.detach(), schedule), slope, rtol=1e-13, atol=0)
    ends = hidden_share(torch.tensor([0.0, 1.0], dtype=torch.float64), schedule)
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=0)


# ---- the parameterisation
def test_the_mask_has_probability_zero() -> None:
    logits = torch.randn(2, 5, 4, generator=draws()).requires_grad_()
    others = torch.tensor([0, 2, 3])
    p = subs_logits(logits, 1).softmax(-1)
    assert (p[..., 1] == 0).all()
    torch.testing.assert_close(p[..., others], logits[..., others].softmax(-1))
    [gradient] = torch.autograd.grad(p.square().sum(), logits)
    assert (gradient[..., 1] == 0).all()
    log_p = subs_logits(logits, 1).log_softmax(-1)
    assert (log_p.exp() * log_p).isfinite().all()  # methods that read logits meet no 0 * inf
    assert subs_logits(logits.half(), 1).isfinite().all()
    assert torch.equal(subs_logits(logits, 3), logits[..., :3])
    assert torch.equal(subs_logits(logits, 4), logits)  # a mask beyond the outputs cannot be predicted anyway


def test_places_in_view_cost_nothing_and_get_no_gradient() -> None:
    task = MaskedDiffusion(MASK)
    ids, mask = torch.tensor([[0, 1, 2]]), torch.tensor([[False, True, False]])
    logits = torch.randn(1, L, V + 1, generator=draws(), dtype=torch.float64).requires_grad_()
    batch = {"x": ids, "y": ids, "t": torch.tensor([0.25], dtype=torch.float64), "mask": mask}
    loss = task.loss(task.forward(lambda z: logits, batch), batch)  # type: ignore[arg-type]
    by_hand = -(1 / 0.25) * logits[0, 1, :V].log_softmax(-1)[1] / L
    torch.testing.assert_close(loss, by_hand[None], rtol=0, atol=1e-14)
    [gradient] = torch.autograd.grad(loss, logits)
    assert (gradient[0, [0, 2]] == 0).all()
    assert gradient[0, 1, MASK] == 0


def test_gradcheck() -> None:
    task = MaskedDiffusion(MASK, schedule="cosine")
    batch = task.draw(torch.randint(V, (4, L), generator=draws()), draws(1))
    logits = torch.randn(4, L, V + 1, generator=draws(), dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda z: task.loss({"logits": subs_logits(z, MASK)}, batch), logits)


# ---- the bound
@pytest.mark.parametrize("schedule", ["loglinear", "cosine", square])
def test_with_exact_conditionals_the_bound_is_the_entropy(schedule: Any) -> None:
    p = law()
    entropy = float(-(p * p.log()).sum())
    assert exact_nelbo(p, schedule) == pytest.approx(entropy, abs=1e-12)


def test_with_conditionals_of_another_law_the_bound_is_the_cross_entropy() -> None:
    p, q = law(0), law(1)
    cross = float(-(p * q.log()).sum())
    assert exact_nelbo(p, "loglinear", q) == pytest.approx(cross, abs=1e-12)


def test_nelbo_estimates_log_likelihoods() -> None:
    """With exact conditionals the mean over masks is -log p(x) of each sequence, not only on average."""
    p = law()
    x = torch.tensor(list(itertools.product(range(V), repeat=L)))
    model, task, n = Conditionals(p), MaskedDiffusion(MASK), 1500
    found = torch.stack([task.nelbo(model, x, draws=4, generator=draws(s)) for s in range(n // 4)])
    error = (found.mean(0) + p.flatten().log()).abs()
    assert (error < 4.5 * found.std(0) / math.sqrt(len(found))).all()


def test_nelbo_of_padded_text_is_that_of_the_text() -> None:
    p = law()

    class Short(nn.Module):  # the exact model of the first L places, whatever follows
        def forward(self, z: Tensor) -> Tensor:
            inner = Conditionals(p)(z[:, :L])
            return torch.cat([inner, inner.new_zeros(len(z), z.shape[1] - L, inner.shape[-1])], 1)

    x = torch.tensor([[0, 1, 2, 5, 5], [2, 2, 1, 5, 5]])
    task = MaskedDiffusion(MASK, pad_id=5)
    found = torch.stack([task.nelbo(Short(), x, draws=L, generator=draws(s)) for s in range(400)])
    truth = -torch.stack([p[0, 1, 2], p[2, 2, 1]]).log()
    assert ((found.mean(0) - truth).abs() < 4.5 * found.std(0) / 20).all()
    assert task.nelbo(Short(), torch.full((1, 5), 5), draws=2).tolist() == [0.0]


# ---- drawing
def test_times_are_stratified_and_places_hidden_as_scheduled() -> None:
    task = MaskedDiffusion(9, schedule="cosine")
    x = torch.zeros(4000, 6, dtype=torch.long)
    batch = task.draw(x, draws())
    assert set(batch) == set(task.reads)
    u = (batch["t"].double() - 1e-3) / (1 - 1e-3) * 4000
    inside = u - torch.arange(4000)
    assert inside.min() > -1e-2  # float32 rounding, times 4000
    assert inside.max() < 1 + 1e-2
    share = hidden_share(batch["t"], "cosine")
    hidden = batch["mask"].float().mean(1)
    assert abs(float((hidden - share).mean())) < 4.5 * 0.5 / math.sqrt(24000)
    assert torch.equal(batch["mask"], task.draw(x, draws())["mask"])
    loose = MaskedDiffusion(9, stratified=False).draw(x, draws())["t"]
    assert (loose.diff() < 0).any()


def test_padding_is_never_hidden_and_does_not_count() -> None:
    task = MaskedDiffusion(9, pad_id=8)
    x = torch.tensor([[1, 2, 8, 8], [1, 2, 3, 4]]).repeat(200, 1)
    batch = task.draw(x, draws())
    assert not (batch["mask"] & (x == 8)).any()
    assert task.weight(batch).tolist() == [2, 4] * 200
    logits = torch.randn(400, 4, 8, generator=draws())
    batch["mask"] = x != 8
    rows = task.loss({"logits": logits}, batch)
    part = {"y": x[:, :2], "t": batch["t"], "mask": batch["mask"][:, :2]}
    short = task.loss({"logits": logits[:, :2]}, part)
    torch.testing.assert_close(rows[::2], short[::2])


# ---- sampling
def test_many_steps_draw_from_the_joint_law() -> None:
    """Per cell: sampling error, and the probability that two of three places are revealed in the same of 200 steps."""
    p, rows, steps = law(), 4000, 150
    task, model = MaskedDiffusion(MASK), Conditionals(law())
    x = task.sample(model, torch.full((rows, L), MASK), steps, generator=draws())
    found = torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27).double() / rows
    error = (found - p.flatten()).abs()
    assert (error < 4.5 * (p.flatten() * (1 - p.flatten()) / rows).sqrt() + 3 / steps * p.flatten().max()).all()


def test_one_step_draws_from_the_product_of_the_marginals() -> None:
    p, rows = law(), 6000
    x = MaskedDiffusion(MASK).sample(Conditionals(p), torch.full((rows, L), MASK), 1, generator=draws())
    one = [p.sum([d for d in range(L) if d != i]) for i in range(L)]
    product = (one[0][:, None, None] * one[1][:, None] * one[2]).flatten()
    found = torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27).double() / rows
    assert ((found - product).abs() < 4.5 * (product / rows).sqrt()).all()


def test_given_places_stay_and_gaps_are_conditional() -> None:
    p, rows = law(), 6000
    ids = torch.tensor([[MASK, 1, 2]]).repeat(rows, 1)
    x = MaskedDiffusion(MASK).sample(Conditionals(p), ids, 3, generator=draws())
    assert torch.equal(x[:, 1:], ids[:, 1:])
    wanted = p[:, 1, 2] / p[:, 1, 2].sum()
    found = torch.bincount(x[:, 0], minlength=V).double() / rows
    assert ((found - wanted).abs() < 4.5 * (wanted * (1 - wanted) / rows).sqrt()).all()


def test_the_model_is_asked_only_where_something_changes() -> None:
    calls: list[Tensor] = []

    class Counting(nn.Module):
        def forward(self, z: Tensor) -> SimpleNamespace:
            calls.append(z.clone())
            assert not self.training
            return SimpleNamespace(logits=torch.zeros(*z.shape, V + 1))

    model = Counting().train()
    x = MaskedDiffusion(MASK).sample(model, torch.full((2, 4), MASK), 1000, generator=draws())
    assert model.training
    assert len(calls) <= 8
    hidden = [(z == MASK).sum() for z in calls]
    assert all(a > b for a, b in itertools.pairwise(hidden))
    assert (x != MASK).all()
    for z in calls:  # what is filled in stays
        assert torch.equal(x[z != MASK], z[z != MASK])


def test_the_mask_is_not_drawn_however_hot() -> None:
    x = MaskedDiffusion(0).sample(nn.Embedding(4, 4), torch.zeros(50, 6).long(), 3, temperature=1e9, generator=draws())
    assert (x != 0).all()


def test_a_schedule_that_starts_at_next_to_nothing_and_32_bit_ids() -> None:
    task = MaskedDiffusion(0, schedule=lambda t: t**800)  # 0 in float64 below t = 0.39
    model, ids = nn.Embedding(4, 4), torch.zeros(50, 6).int()
    x = task.sample(model, ids, 10, generator=draws())
    assert x.dtype == torch.int32
    assert (x != 0).all()
    torch.testing.assert_close(
        task.nelbo(model, x, 2, draws()), task.nelbo(model, x.long(), 2, draws()), rtol=0, atol=0
    )


def test_cold_sampling_takes_the_likeliest() -> None:
    task, p = MaskedDiffusion(MASK), law()
    x = task.sample(Conditionals(p), torch.full((50, L), MASK), 1, temperature=0.0, generator=draws())
    best = [int(p.sum([d for d in range(L) if d != i]).argmax()) for i in range(L)]
    assert (x == torch.tensor(best)).all()


def test_extending_looks_at_the_window_only() -> None:
    seen: list[tuple[int, int]] = []

    class Successor(nn.Module):
        """Fills in the successors of the last id in view."""

        def forward(self, z: Tensor) -> Tensor:
            seen.append((z.shape[1], int((z == 10).sum() / len(z))))
            known = (z != 10).sum(1, keepdim=True) - 1
            start = torch.where(known < 0, torch.full_like(known, 9), z.gather(1, known.clamp(min=0)))
            wanted = (start + torch.arange(z.shape[1]) - known) % 10
            return 100 * nn.functional.one_hot(wanted, 11).float()

    task, successor = MaskedDiffusion(10), Successor()
    start = torch.empty(2, 0, dtype=torch.long)
    x = task.extend(successor, start, 23, 1, window=8, stride=3, generator=draws())
    assert x.tolist() == [[i % 10 for i in range(23)]] * 2
    assert seen == [(8, 8), (8, 3), (8, 3), (8, 3), (8, 3), (8, 3)]
    longer = task.extend(successor, x, 2, 1, window=8, stride=8, generator=draws())
    assert longer.shape == (2, 25)
    with pytest.raises(ValueError, match="stride"):
        task.extend(successor, x, 2, 1, window=8, stride=9)


# ---- as a task
def trial(**settings: Any) -> tuple[nn.Module, MaskedDiffusion, dict[str, Tensor]]:
    task = MaskedDiffusion(6, **settings)
    model = seeded(0, Transformer, 5, 7, ids=7, width=16, depth=1).double()
    batch = task.draw(torch.randint(6, (12, 5), generator=draws()), draws(1))
    return model, task, batch


def test_learns_with_methods_on_a_transformer() -> None:
    model, task, _ = trial(classes=7)
    model.float()
    model.head.weight = model.embed.weight  # type: ignore[union-attr]
    recipe = wp.Recipe(wp.EMA(decay=0.9), wp.ConfidencePenalty(strength=0.01)).attach(model, task)
    optimizer, g = torch.optim.Adam(model.parameters(), lr=1e-2), draws(2)
    x = torch.arange(5) + torch.arange(2).repeat(32)[:, None]  # two sequences
    before = float(task.nelbo(model, x, generator=draws(3)).mean())
    for _ in range(60):
        recipe.step(task.draw(x, g), optimizer)
    after = float(task.nelbo(model, x, generator=draws(3)).mean())
    assert math.log(2) - 0.05 < after < 0.3 * before  # the entropy of two sequences


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "linear"}, "schedule"),
        ({"earliest": 0.0}, "earliest"),
        ({"pad_id": 6}, "an id of its own"),
    ],
)
def test_bad_settings_get_their_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trial(**settings)
    _, task, _ = trial()
    with pytest.raises(ValueError, match="at least 1 step"):
        task.sample(nn.Identity(), torch.zeros(1, 2, dtype=torch.long), 0)
    assert repr(task) == "MaskedDiffusion(6, schedule='loglinear')"
