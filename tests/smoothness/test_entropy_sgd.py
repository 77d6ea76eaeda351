"""Entropy-SGD against its recurrence, the closed form on quadratics, and torch's SGD; conventions of optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wellposed.smoothness.entropy_sgd import EntropySGD, local_entropy_gradient


def closure_of(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        torch.autograd.backward(value)
        return value.detach()

    return closure


def test_recurrence_of_a_finite_chain() -> None:
    """On h x^2 / 2 without noise every step is linear; by hand."""
    h, gamma, lr, average, x = 1.7, 0.4, 0.1, 0.75, 2.0
    moving = mean = x
    for _ in range(7):
        moving -= lr * (h * moving + gamma * (moving - x))
        mean = average * mean + (1 - average) * moving
    found = local_entropy_gradient(lambda w: h * w, torch.tensor([x]).double(), gamma, 7, noise=0.0)
    assert found.item() == pytest.approx(gamma * (x - mean), rel=1e-14)


@pytest.mark.parametrize("h", [0.3, 1.0, 4.0])
def test_long_chain_on_a_quadratic_is_the_closed_form(h: float) -> None:
    x, gamma = torch.tensor([2.0, -1.0]).double(), 0.5
    found = local_entropy_gradient(lambda w: h * w, x, gamma, 500, noise=0.0)
    torch.testing.assert_close(found, gamma * h / (gamma + h) * x, rtol=1e-10, atol=0)


def test_the_mean_on_a_quadratic_has_no_temperature() -> None:
    """A hot chain, many times: the same gradient as a cold one's, within its standard error."""
    count, h, gamma = 20_000, 2.0, 0.5
    hot = local_entropy_gradient(
        lambda w: h * w, torch.ones(count).double(), gamma, 200, noise=1.0, generator=torch.Generator().manual_seed(0)
    )
    assert hot.std() > 0.05
    assert abs(float(hot.mean()) - gamma * h / (gamma + h)) < 4 * float(hot.std()) / count**0.5


def test_stationary_variance_is_the_temperature_over_the_curvature() -> None:
    """noise^2 / 2 over h + gamma, over 1 - lr (h + gamma) / 2 for the length of the step."""
    count, h, gamma, lr, noise = 40_000, 2.0, 0.5, 0.1, 0.7
    ends = local_entropy_gradient(
        lambda w: h * w, torch.zeros(count).double(), gamma, 200, lr=lr, noise=noise, average=0.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    expected = noise**2 / 2 / (h + gamma) / (1 - lr * (h + gamma) / 2)
    assert float((ends / gamma).var()) == pytest.approx(expected, rel=5 * (2 / count) ** 0.5)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(1)).double(), torch.arange(12) % 3


def test_chain_is_torchs_nesterov_on_the_tied_loss() -> None:
    x, y = data()
    ours, theirs = net(), net()
    optimizer = EntropySGD(ours.parameters(), inner_steps=6, gamma=0.3, noise=0.0, weight_decay=0.01)
    first = optimizer.step(closure_of(optimizer, lambda: F.cross_entropy(ours(x), y)))
    centre = [p.detach().clone() for p in theirs.parameters()]
    mean = [c.clone() for c in centre]
    assert first.item() == pytest.approx(F.cross_entropy(theirs(x), y).item(), rel=1e-12)
    reference = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(6):
        reference.zero_grad()
        tie = sum((p - c).square().sum() for p, c in zip(theirs.parameters(), centre, strict=True))
        torch.autograd.backward(F.cross_entropy(theirs(x), y) + 0.15 * tie)
        reference.step()
        mean = [0.75 * m + 0.25 * p.detach() for m, p in zip(mean, theirs.parameters(), strict=True)]
    for p, m in zip(ours.parameters(), mean, strict=True):
        torch.testing.assert_close(p.detach(), m, rtol=1e-12, atol=1e-14)


def test_groups_scoping_and_share_of_the_way() -> None:
    a, b = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = EntropySGD(
        [{"params": [a]}, {"params": [b], "lr": 0.5, "gamma": 0.0}],
        inner_steps=1, gamma=1.0, growth=1.0, noise=0.0, momentum=0.0, average=0.0,
    )  # fmt: skip
    optimizer.step(closure_of(optimizer, lambda: 0.5 * (a.square() + b.square()).sum()))
    assert a.item() == pytest.approx(0.9)  # one step of 0.1
    assert b.item() == pytest.approx(0.95)  # half the way
    assert [g["updates"] for g in optimizer.param_groups] == [1, 1]
    optimizer.inner_steps = 2  # the second step feels gamma, doubled by now: 0.81 + 0.1 * 2 * 0.09, less 10 %
    optimizer.step(closure_of(optimizer, lambda: 0.5 * a.square().sum()))
    assert a.item() == pytest.approx(0.81 - 0.1 * (0.81 - 2 * 0.09))
    assert b.item() == pytest.approx(0.95)  # without a gradient it stays


def test_resuming_is_bit_exact() -> None:
    x, y = data()

    def run(model: nn.Module, optimizer: EntropySGD, updates: int) -> None:
        for _ in range(updates):
            optimizer.step(closure_of(optimizer, lambda: F.cross_entropy(model(x), y)))

    straight, first = net(), net()
    long, short = (EntropySGD(m.parameters(), noise=0.1, inner_steps=3) for m in (straight, first))
    run(straight, long, 4)
    run(first, short, 2)
    second = net(seed=5)
    second.load_state_dict(first.state_dict())
    resumed = EntropySGD(second.parameters(), noise=0.1, inner_steps=3)
    resumed.load_state_dict(copy.deepcopy(short.state_dict()))
    run(second, resumed, 2)
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), second.parameters(), strict=True))
    assert not torch.equal(straight[0].weight, first[0].weight)  # type: ignore[arg-type]


class Mixed(nn.Module):
    """Conv net with BatchNorm, a tied layer, a frozen one and two types."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.a = nn.Linear(64, 64)
        self.b = nn.Linear(64, 64)
        self.b.weight = self.a.weight
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.head = nn.Linear(64, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().flatten(1)
        return self.head(self.frozen(self.b(self.a(x).relu())).double())


def test_trains_nets_it_was_not_made_for() -> None:
    torch.manual_seed(0)
    former = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
    for model, shape in ((Mixed(), (1, 6, 6)), (former, (5, 8))):
        x, y = torch.randn(12, *shape), torch.arange(12) % 3
        optimizer = EntropySGD(model.parameters(), inner_steps=5)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.5)
        losses = []
        for _ in range(25):
            losses.append(optimizer.step(closure_of(optimizer, lambda: F.cross_entropy(model(x), y))).item())  # noqa: B023
            schedule.step()
        assert losses[-1] < 0.8 * losses[0]
        assert optimizer.param_groups[0]["lr"] == 0.5


def test_refusals() -> None:
    w = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"call step\(closure\), as with LBFGS"):
        EntropySGD([w]).step()
    embed = nn.Embedding(5, 2, sparse=True)
    optimizer = EntropySGD(embed.parameters())
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step(closure_of(optimizer, lambda: embed(torch.tensor([1])).sum()))
    with pytest.raises(ValueError, match="lr must be above 0, got 0"):
        EntropySGD([w], lr=0)
    with pytest.raises(ValueError, match="gamma must be at least 0, got -1"):
        EntropySGD([w], gamma=-1)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1"):
        EntropySGD([w], momentum=1)
