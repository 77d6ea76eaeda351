"""MINE: its value, its gradient, and what it measures."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed.information.mine import MINE
from wellposed.information.mutual_information import mutual_information
from wellposed.papers.joint_laws import CorrelatedGaussians
from wellposed.parts.critics import JointCritic, SeparableCritic, mlp_critic


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Weighted(nn.Module):
    """T(x, y) = w x y, a critic with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.weight * (x * y).sum(1)


def test_value_and_gradient_by_hand() -> None:
    """Three batches; pairs of two, so that the shuffled partner is the other one."""
    mine = MINE(Weighted(), rate=0.25).double()
    critic, average = mine.critic, None
    assert isinstance(critic, Weighted)
    for seed in range(3):
        x, y = rand(2, 1, seed=seed), rand(2, 1, seed=seed + 10)
        (x0, x1), (y0, y1) = x.flatten().tolist(), y.flatten().tolist()
        together, apart = (x0 * y0, x1 * y1), (x0 * y1, x1 * y0)
        exps = [math.exp(0.7 * v) for v in apart]
        now = sum(exps) / 2
        average = now if average is None else 0.75 * average + 0.25 * now
        critic.weight.grad = None
        value = mine(x, y)
        value.backward()
        assert value.item() == pytest.approx(0.7 * sum(together) / 2 - math.log(now), rel=1e-12)
        gradient = sum(together) / 2 - sum(e * v for e, v in zip(exps, apart, strict=True)) / 2 / average
        assert critic.weight.grad is not None
        assert critic.weight.grad.item() == pytest.approx(gradient, rel=1e-12)
        assert mine.log_mean.item() == pytest.approx(math.log(average), abs=1e-12)


class Table(nn.Module):
    """T(x, y) of bits, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(rand(2, 2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.table[x, y]


def test_the_average_removes_the_bias_of_the_gradient() -> None:
    """Over all batches of two from a law of two bits: unbiased with the true mean of e^T, biased with the batch's."""
    p = torch.tensor([[0.5, 0.125], [0.125, 0.25]], dtype=torch.float64)
    q = p.sum(1, keepdim=True) * p.sum(0)
    critic = Table()
    ((p * critic.table).sum() - (q * critic.table.exp()).sum().log()).backward()  # type: ignore[no-untyped-call]
    true = critic.table.grad
    assert true is not None
    biases = []
    for rate in (1e-12, 1.0):
        mine, total = MINE(critic, rate=rate), torch.zeros_like(true)
        for a, b in itertools.product(range(4), repeat=2):
            mine.log_mean = (q * critic.table.detach().exp()).sum().log()
            x, y = torch.tensor([a // 2, b // 2]), torch.tensor([a % 2, b % 2])
            critic.table.grad = None
            mine(x, y).backward()
            assert critic.table.grad is not None
            total += p.flatten()[a] * p.flatten()[b] * critic.table.grad
        biases.append(float((total - true).abs().max()))
    assert biases[0] < 1e-11
    assert biases[1] > 0.01


def test_gradcheck_and_forms() -> None:
    x, y = rand(5, 2).requires_grad_(), rand(5, 2, seed=1).requires_grad_()
    critic = SeparableCritic(nn.Linear(2, 3), nn.Linear(2, 3)).double()
    for form, training in (("dv", False), ("f", True)):
        mine = MINE(critic, form=form).train(training)  # type: ignore[arg-type]
        assert torch.autograd.gradcheck(lambda a, b, m=mine: m(a, b, torch.Generator().manual_seed(0)), (x, y))
    bounds = [MINE(critic, form=form).eval()(x, y, torch.Generator().manual_seed(0)) for form in ("dv", "f")]
    assert bounds[1] <= bounds[0]


def test_biased_gradient_is_that_of_the_value() -> None:
    mine = MINE(Weighted(), rate=1.0).double()
    x, y = rand(6, 1).requires_grad_(), rand(6, 1, seed=1)
    training = torch.autograd.grad(mine(x, y, torch.Generator().manual_seed(0)), x)
    torch.testing.assert_close(training, torch.autograd.grad(mine.eval()(x, y, torch.Generator().manual_seed(0)), x))


def test_evaluation_leaves_the_average_alone_and_it_is_saved() -> None:
    mine = MINE(Weighted())
    mine(rand(4, 1), rand(4, 1))
    before = mine.log_mean.clone()
    mine.eval()(rand(4, 1, seed=3), rand(4, 1))
    assert torch.equal(mine.log_mean, before)
    again = MINE(Weighted())
    again.load_state_dict(mine.state_dict())
    assert torch.equal(again.log_mean, before)


def test_images_and_sequences_in_low_precision() -> None:
    """A convolutional critic with batch norm, a transformer, bfloat16."""
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    reader = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(24, 5))
    mine = MINE(SeparableCritic(conv, reader)).bfloat16()
    value = mine(rand(6, 1, 6, 6).bfloat16(), rand(6, 3, 8).bfloat16())
    value.backward()
    assert value.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mine.parameters())


def test_as_a_term_of_training_it_informs_the_encoder() -> None:
    """An encoder that sees one coordinate that tells of y, and one that does not, learns to look at the first."""
    torch.manual_seed(0)
    encoder, mine = nn.Linear(2, 1), MINE(mlp_critic(1, 1, (16,)))
    nn.init.constant_(encoder.weight, 0.5)
    optimizer = torch.optim.Adam([*encoder.parameters(), *mine.parameters()], lr=0.02)
    g = torch.Generator().manual_seed(1)
    for _ in range(150):
        x = torch.randn(128, 2, generator=g)
        y = x[:, :1] + 0.3 * torch.randn(128, 1, generator=g)
        optimizer.zero_grad()
        (-mine(encoder(x), y, g)).backward()
        optimizer.step()
    told, other = encoder.weight[0].abs().tolist()
    assert told > 3 * other


def test_reading_with_a_known_critic_and_its_error() -> None:
    law = CorrelatedGaussians(2, 0.7)
    found = [
        mutual_information(*law.sample(1000, torch.Generator().manual_seed(s)), MINE(law.critic), seed=s)
        for s in range(60)
    ]
    values, errors = torch.tensor([(f.value, f.error) for f in found]).T
    spread = float(values.std())
    assert float(values.mean()) == pytest.approx(law.information, abs=4 * spread / math.sqrt(60))
    assert float(errors.mean()) == pytest.approx(spread, rel=4 / math.sqrt(2 * 60))  # four standard errors of a spread
    assert found[0].pairs == 1000


def test_training_a_critic_of_ones_own() -> None:
    law = CorrelatedGaussians(1, 0.9)
    x, y = law.sample(3000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    mine = MINE(mlp_critic(1, 1, (32,)))
    found = mutual_information(x, y, mine, steps=200, batch=128, lr=5e-3)
    assert found.estimator is mine
    assert mine.training  # as it came
    assert found.pairs == 600
    assert len(found.curve) == 10
    assert found.value == pytest.approx(law.information, abs=0.25)
    again = mutual_information(x, y, steps=20, batch=64)
    assert again.value == mutual_information(x, y, steps=20, batch=64).value


def test_other_types_of_rows() -> None:
    labels, images = torch.arange(120) % 3, rand(120, 1, 2, 2)
    found = mutual_information(images, labels, steps=3, batch=8)
    assert math.isfinite(found.value)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="rate must be above 0 and at most 1, got 0"):
        MINE(Weighted(), rate=0.0)
    with pytest.raises(ValueError, match="form must be one of dv, f, got 'g'"):
        MINE(Weighted(), form="g")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 100 pairs, row by row; got 100 and 99 rows"):
        mutual_information(rand(100, 1), rand(99, 1))
    with pytest.raises(ValueError, match=r"batch at least 2, lr above 0; got 10, 10, 1, 0\.1"):
        mutual_information(rand(100, 1), rand(100, 1), steps=10, batch=1, lr=0.1)
    with pytest.raises(ValueError, match="one score a pair"):
        MINE(JointCritic(nn.Linear(2, 2)).double())(rand(4, 1), rand(4, 1))


class Normed(nn.Module):
    """A joint critic with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = JointCritic(nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.net(x, y)
        return found


def test_batch_norm_sees_both_kinds_of_pairs_in_one_batch() -> None:
    """Of each kind alone the statistics tell which it is, and running ones, of both, would not fit either."""
    law = CorrelatedGaussians(1, 0.9)
    torch.manual_seed(0)
    found = mutual_information(
        *law.sample(3000, torch.Generator().manual_seed(0)), MINE(Normed()), steps=200, batch=128, lr=5e-3
    )
    assert found.value == pytest.approx(law.information, abs=0.25)


def test_missing_values_are_refused() -> None:
    """One of them would stop the training at the first batch it is drawn in, and the best critic so far be read."""
    x = rand(200, 1).float()
    x[7] = math.nan
    with pytest.raises(ValueError, match="x holds NaN"):
        mutual_information(x, rand(200, 1), MINE(Weighted()))
    with pytest.raises(ValueError, match="y holds NaN"):
        mutual_information(rand(200, 1), x / 0, MINE(Weighted()))


def test_what_is_around_it_has_no_say() -> None:
    """Autocast keeps casts of weights that require gradients: every batch would see the first ones."""
    law = CorrelatedGaussians(1, 0.9)
    x, y = law.sample(500, torch.Generator().manual_seed(0))
    value = mutual_information(x, y, steps=30, lr=0.01).value
    assert value > 0.2
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert mutual_information(x, y, steps=30, lr=0.01).value == value
    assert mutual_information(x.clone().requires_grad_() * 1, y, steps=30, lr=0.01).value == value


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the tracing itself
def test_a_compiled_estimator() -> None:
    x = rand(100, 1).float()
    compiled: Any = torch.compile(MINE(mlp_critic(1, 1)), backend="eager")
    assert mutual_information(x, x, compiled, steps=1).pairs == 20


def test_whole_numbers_of_many_digits() -> None:
    """Seconds since 1970: float32 has steps of 128 there."""
    x = torch.randint(100, (1000,), generator=torch.Generator().manual_seed(0))
    late = mutual_information(1_700_000_000 + x, x, steps=50, lr=0.01).value
    assert late == pytest.approx(mutual_information(x, x, steps=50, lr=0.01).value, abs=0.01)
    assert late > 0.5
