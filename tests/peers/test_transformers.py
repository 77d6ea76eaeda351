"""Language models of Hugging Face under our tasks: GPT-2, Llama and BERT with random weights, nothing downloaded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import wellposed as wp
from wellposed.parts.decoding import generate
from wellposed.tasks import group_advantages

VOCABULARY, MASK = 24, 23


def causal(kind: str = "gpt2") -> nn.Module:
    torch.manual_seed(0)
    small = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if kind == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, **dropout, **small))
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, **small)
    )


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(MASK, shape, generator=torch.Generator().manual_seed(seed))


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_next_token_is_their_loss(kind: str) -> None:
    ids = tokens(4, 9)
    ours, theirs = causal(kind), causal(kind)
    recipe = wp.Recipe().attach(ours, wp.NextToken(classes=VOCABULARY))
    terms = recipe.step({"x": ids[:, :-1], "y": ids[:, 1:]}, torch.optim.SGD(ours.parameters(), lr=0.0))
    loss = theirs(ids, labels=ids).loss
    loss.backward()
    assert terms["task"].item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(gradient(ours), gradient(theirs), rtol=1e-3, atol=1e-6)


def test_preferences_with_padding() -> None:
    """DPO and the likelihood of the chosen answers, from their logits and masks, written out."""
    model, reference = causal(), causal()
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(0.9)
    ids, ends = tokens(6, 8), torch.tensor([5, 6, 7, 8, 8, 4])
    answer = (torch.arange(8) >= 2) & (torch.arange(8) < ends[:, None])
    batch = {"chosen": ids[:3], "chosen_mask": answer[:3], "rejected": ids[3:], "rejected_mask": answer[3:]}
    recipe = wp.Recipe(wp.RPO(strength=0.2)).attach(model, wp.Prefer(reference, beta=0.5))
    terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.0))

    def log_prob(net: nn.Module, row: int) -> Tensor:
        law = net(ids[row : row + 1]).logits[0].log_softmax(-1)
        return torch.stack([law[t - 1, ids[row, t]] for t in range(2, int(ends[row]))]).sum()

    losses = []
    for k in range(3):
        chosen, rejected = log_prob(model, k), log_prob(model, k + 3)
        margin = chosen - rejected - log_prob(reference, k) + log_prob(reference, k + 3)
        losses.append(-F.logsigmoid(0.5 * margin) - 0.2 * chosen / (ends[k] - 2))
    assert terms["total"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_greedy_continuations_are_theirs(kind: str) -> None:
    model = causal(kind).eval()
    prompts = tokens(3, 4)
    found = generate(model, prompts, 10, temperature=0.0)
    wanted = model.generate(prompts, max_new_tokens=10, do_sample=False, attention_mask=torch.ones_like(prompts))
    assert torch.equal(found.ids, wanted)


def test_a_model_learns_from_its_samples() -> None:
    """Sample, reward, step: a token that pays becomes frequent."""
    model = causal()
    recipe = wp.Recipe().attach(model, wp.Policy())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator, rewards = torch.Generator().manual_seed(0), []
    for _ in range(15):
        written = generate(model, tokens(2, 3), 6, group=16, generator=generator)
        reward = ((written.ids == 7) & written.sampled).sum(1).float()
        rewards.append(reward.mean().item())
        batch = {"ids": written.ids, "mask": written.sampled, "sampled_log_probs": written.log_probs}
        recipe.step(batch | {"advantage": group_advantages(reward, 16)}, optimizer)
    assert rewards[-1] > rewards[0] + 1


def test_masked_diffusion_of_a_bidirectional_model() -> None:
    torch.manual_seed(0)
    model = hf.BertForMaskedLM(
        hf.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            pad_token_id=None,
        )
    )
    task = wp.MaskedDiffusion(mask_id=MASK)
    recipe = wp.Recipe(wp.EMA()).attach(model, task)
    terms = recipe.step(task.draw(tokens(4, 8), torch.Generator().manual_seed(0)), torch.optim.Adam(model.parameters()))
    assert terms["task"].isfinite()
    assert not (task.sample(model, torch.full((2, 8), MASK), steps=4) == MASK).any()


def test_text_under_a_model_comes_back() -> None:
    model = wp.CausalPredictor(causal(), start_id=MASK, memory=16)
    ids = tokens(40)
    assert torch.equal(wp.lm_decompress(wp.lm_compress(ids, model), model), ids)
