"""AdaMixUp against the formula by hand, its Adam against torch's, and the rate of intrusion on a known picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.augmentation.adamixup import AdaMixUp, intrusion_rate, policy_shares


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, 6, generator=g, dtype=torch.float64), "y": torch.arange(12) % 3}


def test_shares_lie_in_the_policys_interval() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3, dtype=torch.float64)
    low, length, _ = logits[0].softmax(0).tolist()
    found = policy_shares(logits, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([low, low + length / 2, low + length], rel=1e-14)
    assert torch.autograd.gradcheck(policy_shares, (logits.requires_grad_(), torch.rand(3, dtype=torch.float64)))


def test_intrusion_counts_mixtures_near_another_class() -> None:
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 0])
    mixed = torch.tensor([[1.05], [0.5], [1.9], [0.95]])  # near the other class, nowhere, near its own, near the other
    assert intrusion_rate(mixed, torch.zeros(4, dtype=torch.long), x, y, 0.2).item() == 0.5


def test_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean loss, mixed loss and the critic's, and the gradient of their sum for model, policy and critic."""
    net, data, method = model(), batch(), AdaMixUp(width=6, strength=0.7)
    recipe = wp.Recipe(method).attach(net, wp.Classify(classes=3))
    drawn: list[tuple[Tensor, Tensor]] = []
    mix = AdaMixUp.mix

    def record(self: AdaMixUp, x: Tensor, y: Tensor, partner: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append((partner, u))
        return mix(self, x, y, partner, u)

    monkeypatch.setattr(AdaMixUp, "mix", record)
    monkeypatch.setattr(AdaMixUp, "update", lambda self, step: None)
    terms = recipe.step(data, torch.optim.SGD(net.parameters(), lr=0.0))
    (partner, u), x, y = drawn[0], data["x"], F.one_hot(data["y"], 3).double()
    total = F.cross_entropy(net(x), y)
    for i in range(12):
        j = partner[i]
        a, d, _ = method.policy(torch.cat([x[i], x[j]])).softmax(0)
        share = a + d * u[i]
        moved, target = share * x[i] + (1 - share) * x[j], share * y[i] + (1 - share) * y[j]
        told = -F.logsigmoid(method.critic(moved)) - F.logsigmoid(-method.critic(x[i]))
        total = total + 0.7 / 12 * (-(target * net(moved).log_softmax(0)).sum() + told.squeeze())
    assert terms["total"].item() == pytest.approx(total.item(), rel=1e-7)  # u is drawn in float32
    everything = [*net.parameters(), *method.policy.parameters(), *method.critic.parameters()]
    for p, g in zip(everything, torch.autograd.grad(total, everything), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-6, atol=1e-9)


def test_own_optimizer_is_torchs_adam() -> None:
    method = AdaMixUp(width=6, hidden=4, rate=0.01)
    net = model()
    recipe = wp.Recipe(method).attach(net, wp.Classify(classes=3))
    own = [*method.policy.parameters(), *method.critic.parameters()]
    twins = [p.detach().clone().requires_grad_() for p in own]
    reference = torch.optim.Adam(twins, 0.01)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(5):
        recipe.step(batch(), optimizer)
        for twin, p in zip(twins, own, strict=True):
            assert p.grad is not None
            twin.grad = p.grad.clone()
        reference.step()
    for twin, p in zip(twins, own, strict=True):
        torch.testing.assert_close(p, twin, rtol=1e-9, atol=1e-12)


def test_attaching_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    net = nn.Linear(6, 3)
    torch.set_rng_state(state)
    wp.Recipe(AdaMixUp(width=6)).attach(net, wp.Classify(classes=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_conv_net_with_batch_norm_and_a_transformer() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    former = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
    for net, shape in ((conv, (1, 8, 8)), (former, (5, 8))):
        x = torch.randn(12, *shape)
        recipe = wp.Recipe(AdaMixUp(width=x[0].numel())).attach(net, wp.Classify(classes=3))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        terms = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer) for _ in range(40)]
        assert terms[-1]["task"] < 0.5 * terms[0]["task"]
        assert terms[-1]["AdaMixUp"] < terms[0]["AdaMixUp"]
    assert norm.num_batches_tracked == 40


def test_refusals() -> None:
    with pytest.raises(wp.RecipeError, match="AdaMixUp mixes targets, so it must know how many classes"):
        wp.Recipe(AdaMixUp(width=6)).attach(model(), wp.Classify())
    recipe = wp.Recipe(AdaMixUp(width=5)).attach(model(), wp.Classify(classes=3))
    with pytest.raises(ValueError, match="an input has 6 values, width says 5"):
        recipe.step(batch(), torch.optim.SGD(model().parameters()))
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 3))
    recipe = wp.Recipe(AdaMixUp(width=6)).attach(tokens, wp.Classify(classes=3))
    with pytest.raises(TypeError, match=r"AdaMixUp mixes real inputs, but x holds torch.int64"):
        recipe.step({"x": torch.randint(9, (6, 6)), "y": torch.arange(6) % 3}, torch.optim.SGD(tokens.parameters()))
