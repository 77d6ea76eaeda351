"""L1-sparse unlearning and the report on what is left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.adaptation.unlearning import (
    UnlearningReport,
    best_threshold,
    fading,
    l1_sparse_unlearn,
    unlearning_report,
)
from wellposed.core.schedules import Constant
from wellposed.core.task import Batch
from wellposed.papers.nets import ConvNet, Transformer, seeded

TASK = wp.Classify(classes=3)


def rows(n: int = 24, shape: tuple[int, ...] = (6,), seed: int = 0) -> list[Batch]:
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    return [{"x": x[i : i + 8], "y": torch.arange(i, min(i + 8, n)) % 3} for i in range(0, n, 8)]


def perceptron() -> nn.Module:
    net: nn.Module = seeded(0, lambda: nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 3)))
    return net


def test_strength_falls_by_equal_steps_and_ends_early() -> None:
    for epochs, plain in ((10, 0), (10, 3), (7, 2), (1, 0)):
        schedule = fading(2e-3, epochs, plain)
        for e in range(epochs):
            wanted = 2e-3 * (1 - e / (epochs - plain)) if e < epochs - plain else 0.0
            assert schedule(e / epochs) == pytest.approx(wanted, abs=1e-18)
    assert fading(0.5, 1) == Constant(0.5)
    with pytest.raises(ValueError, match="more epochs than plain ones, got 3 and 3"):
        fading(1.0, 3, 3)


def test_equals_the_loop_written_out() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    other = copy.deepcopy(one)
    batches: list[Batch] = [{"x": b["x"].double(), "y": b["y"]} for b in rows()]
    l1_sparse_unlearn(one, TASK, batches, torch.optim.SGD(one.parameters(), lr=0.1), epochs=4, gamma=0.02, plain=1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for gamma in (0.02, 0.02 * 2 / 3, 0.02 / 3, 0.0):
        for batch in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(other(batch["x"]), batch["y"])
            for p in other.parameters():
                if p.ndim == 2:
                    loss = loss + gamma * p.abs().sum()
            torch.autograd.backward(loss)
            optimizer.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gamma_0_is_fine_tuning_and_gamma_makes_small_weights() -> None:
    nets, sizes = [perceptron() for _ in range(2)], []
    for net, gamma in zip(nets, (0.0, 1e-2), strict=True):
        l1_sparse_unlearn(net, TASK, rows(), torch.optim.AdamW(net.parameters(), lr=1e-2), epochs=10, gamma=gamma)
        sizes.append(sum(float(p.detach().abs().sum()) for p in net.parameters() if p.ndim == 2))
    assert sizes[1] < 0.9 * sizes[0]
    assert all(not hasattr(net, "parametrizations") for net in nets)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_models_of_users(kind: str) -> None:
    if kind == "conv":
        model, batches = seeded(0, ConvNet, 3), rows(shape=(64,))
        model.features_[0].requires_grad_(False)
    else:
        model, batches = seeded(0, Transformer, 5, 3, size=6, width=8, depth=1, pooled=True), rows(shape=(5, 6))
        model.blocks.layers[0].linear1.weight.requires_grad_(False)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    l1_sparse_unlearn(model, TASK, batches, optimizer, epochs=2)
    assert frozen
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in frozen.items())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    report = unlearning_report(model, TASK, batches[:1], batches[1:], batches)
    assert all(0 <= v <= 100 for v in vars(report).values())
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()), "looking changed the model"


def test_an_iterator_is_refused_when_it_is_used_up() -> None:
    net = perceptron()
    with pytest.raises(ValueError, match="epoch 1 found no retained batch"):
        l1_sparse_unlearn(net, TASK, iter(rows()), torch.optim.SGD(net.parameters(), lr=0.1), epochs=2)


# ---- the report
def test_threshold_by_trying_all() -> None:
    g = torch.Generator().manual_seed(0)
    for n, m in ((20, 7), (5, 30), (1, 1)):
        members, others = torch.randn(n, generator=g) + 0.7, torch.randn(m, generator=g)

        def told_right(t: Tensor, a: Tensor = members, b: Tensor = others) -> float:
            return float((a >= t).double().mean() + (b < t).double().mean())

        best = max(told_right(t) for t in torch.cat([members, others]))
        assert told_right(best_threshold(members, others)) == pytest.approx(best)


def test_report_of_a_known_model() -> None:
    """Logits are the inputs, so that confidences are known: members at 3, others at 1, the forgotten half and half."""
    model = nn.Identity()
    eye = torch.eye(3)

    def at(size: float, n: int) -> list[Batch]:
        return [{"x": size * eye[torch.arange(n) % 3], "y": torch.arange(n) % 3}]

    forgotten: list[Batch] = at(3.0, 3) + at(1.0, 3)
    wrong: list[Batch] = [{"x": -eye[:2], "y": torch.arange(2)}]
    report = unlearning_report(model, TASK, forgotten + wrong, at(3.0, 9), at(1.0, 6))
    assert vars(report) == pytest.approx(
        {"unlearning": 100 * 2 / 8, "membership": 100 * 5 / 8, "retained": 100, "test": 100}
    )
    assert report.gap(report) == 0
    other = UnlearningReport(unlearning=35.0, membership=52.5, retained=96.0, test=104.0)
    assert report.gap(other) == pytest.approx((10 + 10 + 4 + 4) / 4)


def test_reports_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least one forgotten sample"):
        unlearning_report(perceptron(), TASK, [], rows(), rows())
    soft: list[Batch] = [{"x": torch.randn(2, 6), "y": torch.full((2, 3), 1 / 3)}]
    with pytest.raises(ValueError, match="needs class ids"):
        unlearning_report(perceptron(), TASK, soft, rows(), rows())
