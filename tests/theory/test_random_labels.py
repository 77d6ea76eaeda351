"""Randomisation: corruptions by what they keep, memorising by a net that looks up, and the theorem."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wellposed.core.card import card
from wellposed.objectives.label_smoothing import LabelSmoothing
from wellposed.theory.random_labels import (
    FiniteSampleInterpolator,
    corrupt_inputs,
    corrupt_labels,
    epochs_to_fit,
    randomization_test,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Lookup(nn.Module):
    """Answers what it was shown, and class 0 otherwise."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.known = {tuple(row.flatten().tolist()): label for row, label in zip(x, y.tolist(), strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        found = [self.known.get(tuple(row.flatten().tolist()), 0) for row in x]
        return nn.functional.one_hot(torch.tensor(found), 4).float()


def test_share_of_labels() -> None:
    y = torch.arange(4).repeat(5000)
    assert torch.equal(corrupt_labels(y, 0.0, 4, generator()), y)
    for share in (0.5, 1.0):  # a random label is the right one in a quarter of the cases
        wrong = (corrupt_labels(y, share, 4, generator()) != y).double().mean()
        assert float(wrong) == pytest.approx(0.75 * share, abs=4 * (0.25 / len(y)) ** 0.5)
    with pytest.raises(ValueError, match="share must be 0 to 1"):
        corrupt_labels(y, 1.5, 4)


@pytest.mark.parametrize("shape", [(6, 30), (6, 3, 5, 6)])
def test_places_move_and_channels_stay_together(shape: tuple[int, ...]) -> None:
    x = torch.arange(6 * 30).float().view(6, 30) if len(shape) == 2 else torch.arange(540).float().view(shape)
    flat = x.view(6, 1, 30) if len(shape) == 2 else x.flatten(2)

    def orders(changed: Tensor) -> Tensor:
        return (changed.view(flat.shape) - flat[..., :1]).long()  # where each value came from

    alike, apart = (orders(corrupt_inputs(x, how, generator())) for how in ("shuffled", "random"))
    for order in (alike, apart):
        assert torch.equal(order.sort(-1).values, torch.arange(30).expand(flat.shape))
        assert torch.equal(order, order[:, :1].expand(order.shape))
    assert torch.equal(alike, alike[:1].expand(alike.shape))
    assert len({tuple(o.flatten().tolist()) for o in apart}) == 6


def test_gaussian_inputs_have_the_moments() -> None:
    x = 3 + 2 * torch.rand(100, 200, generator=generator())
    noise = corrupt_inputs(x, "gaussian", generator(1))
    deviation = float(x.std())
    assert float(noise.mean()) == pytest.approx(float(x.mean()), abs=4 * deviation / 20_000**0.5)
    assert float(noise.std()) == pytest.approx(deviation, rel=4 / (2 * 20_000) ** 0.5)
    with pytest.raises(ValueError, match="how must be"):
        corrupt_inputs(x, "noise")  # type: ignore[arg-type]


def test_table_of_a_net_that_looks_up() -> None:
    assert card(randomization_test).formula
    x, y = torch.rand(400, 1, 3, 3, generator=generator()), torch.randint(4, (400,), generator=generator(1))
    found = randomization_test(Lookup, x[:300], y[:300], x[300:], y[300:], classes=4)
    zeros = 100 * (y[300:] == 0).double().mean().item()
    assert len(found) == 6
    for row in found.values():
        assert row == {"train": 100.0, "test": pytest.approx(zeros)}
    with pytest.raises(ValueError, match="as many labels as inputs"):
        randomization_test(Lookup, x, y[:3], x, y, classes=4)


def test_epochs_until_fitted() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(24, 6), torch.randint(3, (24,))

    def epochs(limit: int) -> tuple[int | None, nn.Module]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        smoothing = LabelSmoothing(epsilon=0.1)
        return epochs_to_fit(model, x, y, optimizer, smoothing, classes=3, batch=8, limit=limit), model

    needed, model = epochs(100)
    assert needed
    assert torch.equal(model.eval()(x).argmax(-1), y)
    assert epochs(needed)[0] == needed
    assert needed > 1
    assert epochs(needed - 1)[0] is None


def test_theorem_any_targets_with_2n_plus_d_weights() -> None:
    x, y = torch.randn(200, 10, generator=generator()), torch.randn(200, generator=generator(1)) * 5
    net = FiniteSampleInterpolator(x, y, generator(2))
    assert sum(p.numel() for p in net.parameters()) == 2 * 200 + 10
    # Output weights of size W meet sums of W times range: float64 leaves about 1e-16 of it, times n steps.
    bound = 1e-16 * float(net.weights.detach().abs().max()) * 20 * 200
    assert float((net(x).detach() - y).abs().max()) < bound < 1e-4
    with pytest.raises(ValueError, match="same projection"):
        FiniteSampleInterpolator(torch.ones(2, 3), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="are needed"):
        FiniteSampleInterpolator(x, y[:5])
