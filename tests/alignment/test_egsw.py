"""Entropy-guided weights: the softmax by loops, the paper's identities, and what they do to the surrogate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import wellposed as wp
from wellposed.alignment.egsw import entropy_guided_advantages, entropy_guided_weights
from wellposed.papers.language import causal
from wellposed.parts.decoding import generate
from wellposed.tasks import Policy, answer_entropy, group_advantages, token_log_probs

B, G = 12, 4


def answers() -> tuple[Tensor, Tensor]:
    """Advantages and entropies of three groups."""
    g = torch.Generator().manual_seed(0)
    advantage = torch.randn(B, generator=g, dtype=torch.float64)
    return advantage, torch.rand(B, generator=g, dtype=torch.float64)


def test_weights_by_loops() -> None:
    advantage, entropy = answers()
    found = entropy_guided_weights(advantage, entropy, G, alpha=0.7, temperature=0.5)
    for i in range(B):
        group = range(i // G * G, i // G * G + G)
        raw = [math.exp(float(advantage[j] + 0.7 * entropy[j]) / 0.5) for j in group]
        assert found[i].item() == pytest.approx(raw[i % G] / sum(raw))
    torch.testing.assert_close(
        entropy_guided_advantages(advantage, entropy, G, 0.7, 0.5), G * found * advantage, rtol=0, atol=1e-15
    )


def test_labels_are_groups_wherever_their_rows_are() -> None:
    advantage, entropy = answers()
    whole = entropy_guided_advantages(advantage, entropy, G)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([7, 3, 5]).repeat_interleave(G)[order]
    torch.testing.assert_close(entropy_guided_advantages(advantage[order], entropy[order], labels), whole[order])
    uneven = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    weights = entropy_guided_weights(advantage[:7], entropy[:7], uneven)
    torch.testing.assert_close(weights.new_zeros(2).index_add(0, uneven, weights), torch.ones(2, dtype=torch.float64))


def test_a_high_temperature_leaves_grpo() -> None:
    advantage, entropy = answers()
    torch.testing.assert_close(
        entropy_guided_advantages(advantage, entropy, G, temperature=1e9), advantage, rtol=1e-7, atol=0
    )


def test_shifts_of_a_group_cancel() -> None:
    advantage, entropy = answers()
    weights = entropy_guided_weights(advantage, entropy, G, 0.7)
    shift = torch.tensor([3.0, -100.0, 1e4], dtype=torch.float64).repeat_interleave(G)
    # at 1e4 a sum has lost 1e4 * eps of the scores
    torch.testing.assert_close(entropy_guided_weights(advantage + shift, entropy, G, 0.7), weights, rtol=0, atol=1e-11)
    torch.testing.assert_close(entropy_guided_weights(advantage, entropy + shift, G, 0.7), weights, rtol=0, atol=1e-11)


def test_log_ratios_are_differences_of_the_scores() -> None:
    advantage, entropy = answers()
    logs = entropy_guided_weights(advantage, entropy, G, 0.7, 0.3).log()
    expected = ((advantage[1] - advantage[3]) + 0.7 * (entropy[1] - entropy[3])) / 0.3
    torch.testing.assert_close(logs[1] - logs[3], expected)


def test_policy_on_these_advantages_is_the_weighted_objective() -> None:
    """Sum over the group of w_i times each answer's clipped surrogate; G times that mean is what `Policy` averages."""
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(B, 4, 5, generator=g, dtype=torch.float64)
    ids, mask = torch.randint(5, (B, 4), generator=g), torch.tensor([False, True, True, True]).expand(B, 4)
    sampled = token_log_probs(logits + 0.4 * torch.randn(B, 4, 5, generator=g, dtype=torch.float64), ids, mask)
    advantage = answers()[0]
    entropy = answer_entropy(logits, mask)
    ratio = (token_log_probs(logits, ids, mask) - sampled).exp()[:, 1:]
    pays = torch.minimum(ratio * advantage[:, None], ratio.clamp(0.8, 1.2) * advantage[:, None]).mean(1)
    weights = entropy_guided_weights(advantage, entropy, G)
    expected = -(weights * pays).view(-1, G).sum(1).mean()

    batch = {"ids": ids, "mask": mask, "sampled_log_probs": sampled}
    batch["advantage"] = entropy_guided_advantages(advantage, entropy, G)
    rows = Policy().loss({"log_probs": token_log_probs(logits, ids, mask)}, batch)
    torch.testing.assert_close(rows.mean(), expected)


def test_on_a_language_model() -> None:
    """Sampled answers, their entropies from one more pass, weights without a gradient, and updates that help."""
    model = causal(0, 10, width=16, depth=1)
    recipe = wp.Recipe().attach(model, Policy())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    g, shares = torch.Generator().manual_seed(0), []
    for _ in range(12):
        written = generate(model, torch.tensor([[3, 4], [5, 6]]), 5, group=8, generator=g)
        reward = ((written.ids == 1) & written.sampled).sum(1).float()
        shares.append(float(reward.mean()))
        entropy = answer_entropy(model(written.ids), written.sampled)
        advantage = entropy_guided_advantages(group_advantages(reward, 8), entropy, 8)
        assert not advantage.requires_grad
        batch = {"ids": written.ids, "mask": written.sampled, "sampled_log_probs": written.log_probs}
        recipe.step(batch | {"advantage": advantage}, optimizer)
    assert sum(shares[-3:]) > 2 * sum(shares[:3])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="one number for each answer"):
        entropy_guided_weights(torch.zeros(4), torch.zeros(4, 2), 2)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        entropy_guided_weights(torch.zeros(4), torch.zeros(4), 2, temperature=0.0)
    with pytest.raises(ValueError, match="4 rows do not make groups of 3"):
        entropy_guided_weights(torch.zeros(4), torch.zeros(4), 3)
