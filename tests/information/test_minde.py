"""MINDE: integrals over noise levels with exact denoisers, and a net that is trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wellposed.information import minde as m
from wellposed.papers.joint_laws import CorrelatedGaussians
from wellposed.tasks.denoise import Denoise

LAW = CorrelatedGaussians(2, 0.8)
TASKS = [Denoise(schedule=name) for name in ("linear", "cosine", "flow", "trig")]


def pairs(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = LAW.sample(n, torch.Generator().manual_seed(seed))
    return x.double(), y.double()


def exact(task: Denoise) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """What is best to answer, told or not, and of both."""

    def answer(noise: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        clean = (x_t - sigma * noise) / alpha
        return {"epsilon": noise, "x0": clean, "v": alpha * noise - sigma * clean, "velocity": noise - clean}[
            task.predict
        ]

    def one(x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        levels = task.levels(t, x_t)
        return answer(LAW.noise(x_t, *levels, y), x_t, *levels)

    def both(x_t: Tensor, t: Tensor) -> Tensor:
        levels = task.levels(t, x_t)
        return answer(LAW.joint_noise(x_t, *levels), x_t, *levels)

    return one, both


def close(found: m.DiffusionEstimate, truth: float) -> None:
    assert found.value == pytest.approx(truth, abs=5 * found.error + 0.002 * abs(truth))  # what the schedules cut off
    assert found.error < 0.05 * max(abs(truth), 1)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.schedule)
def test_information_by_exact_denoisers(task: Denoise) -> None:
    (x, y), (one, both) = pairs(20_000), exact(task)
    g = torch.Generator().manual_seed(1)
    close(m.diffusion_information(one, one, x, y, task, generator=g), LAW.information)
    close(m.diffusion_joint_information(both, one, one, x, y, task, generator=g), LAW.information)
    assert m.diffusion_information(lambda x_t, t, y: one(x_t, t), one, x, y, task, generator=g).value == 0


@pytest.mark.parametrize("predict", ["x0", "v", "velocity"])
def test_whatever_is_predicted(predict: str) -> None:
    schedule = "flow" if predict == "velocity" else "linear"
    values = []
    for what in ("epsilon", predict):
        task = Denoise(what, schedule)  # type: ignore[arg-type]
        x, y = pairs(500)
        one, _ = exact(task)
        values.append(m.diffusion_information(one, one, x, y, task, generator=torch.Generator().manual_seed(1)).value)
    assert values[0] == pytest.approx(values[1], rel=1e-8)


def test_divergence_and_entropy_of_gaussians() -> None:
    task, std = Denoise(), torch.tensor([0.5, 2.0], dtype=torch.float64)
    x = std * pairs(20_000)[0]

    def denoiser(std: Tensor | float) -> Callable[[Tensor, Tensor], Tensor]:
        def noise(x_t: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = task.levels(t, x_t)
            return sigma * x_t / ((alpha * std) ** 2 + sigma**2)

        return noise

    g = torch.Generator().manual_seed(2)
    kl = float(((std**2 - 1) / 2 - std.log()).sum())
    close(m.diffusion_kl(denoiser(std), denoiser(1.0), x, task, generator=g), kl)
    entropy = float((2 * math.pi * math.e * std**2).log().sum() / 2)
    for reference in (1.0, 1.5):
        close(m.diffusion_entropy(denoiser(std), x, task, reference, generator=g), entropy)


def test_the_error_is_the_spread_of_repeated_draws() -> None:
    (x, y), (one, _), task = pairs(400), exact(TASKS[0]), TASKS[0]
    found = [
        m.diffusion_information(one, one, x, y, task, generator=torch.Generator().manual_seed(s)) for s in range(100)
    ]
    values, errors = torch.tensor(found, dtype=torch.float64).T
    fresh = [
        m.diffusion_information(one, one, *pairs(400, s), task, generator=torch.Generator().manual_seed(s))
        for s in range(100)
    ]
    spread = float(torch.tensor(fresh, dtype=torch.float64)[:, 0].std())
    assert float(values.std()) < 1.3 * spread  # the pairs add to it
    assert float(errors.square().mean().sqrt()) == pytest.approx(spread, rel=4 / math.sqrt(2 * 100))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.schedule)
def test_times_are_uniform_in_the_logarithm_of_the_noise(task: Denoise) -> None:
    times, widths = m.noise_levels(task)
    alpha, sigma = task.levels(times, torch.empty(0, dtype=torch.float64))
    ratio = (sigma / alpha).log()
    by_hand = sum(
        (float(b - a)) / 2 * (float(sigma[i] ** 2) + float(sigma[i + 1] ** 2))
        for i, (a, b) in enumerate(itertools.pairwise(ratio))
    )
    assert float((widths * sigma**2).sum()) == pytest.approx(by_hand, rel=1e-9)  # the trapezoidal rule
    drawn = m.drawn_times(task, 50_000, torch.Generator().manual_seed(0), torch.device("cpu"))
    alpha, sigma = task.levels(drawn, torch.empty(0, dtype=torch.float64))
    found = (sigma.double() / alpha.double()).log()
    middle = float((found < (ratio[0] + ratio[-1]) / 2).double().mean())
    assert middle == pytest.approx(0.5, abs=0.01)
    assert (found.diff() >= 0).all()


class Spy(nn.Module):
    """Remembers what it was asked; predicts nothing."""

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor, known: Tensor) -> Tensor:
        self.y, self.known = y, known
        return torch.zeros_like(x_t)


def test_training_hides_y_half_of_the_time() -> None:
    spy = Spy()
    x = torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    y = 1 + torch.arange(4000)[:, None]
    loss = m.MINDE(spy, told=0.25)(x, y, torch.Generator().manual_seed(1))
    assert float(loss) == pytest.approx(1, abs=5 * math.sqrt(2 / 16_000))  # the mean square of the noise
    assert float(spy.known.mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(spy.y, y * spy.known[:, None].long())


def test_information_of_a_net_and_its_mode() -> None:
    """The two answers of the net, by the function for any two denoisers; dropout is off."""
    x, y = pairs(100)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x_t: Tensor, t: Tensor, y: Tensor, known: Tensor) -> Tensor:
            levels = TASKS[0].levels(t, x_t)
            return self.drop(torch.where(known[:, None] > 0, LAW.noise(x_t, *levels, y), LAW.noise(x_t, *levels)))

    net = m.MINDE(Net())
    one, _ = exact(TASKS[0])
    found = net.information(x, y, 2, torch.Generator().manual_seed(0))
    assert net.training
    assert found == m.diffusion_information(one, one, x, y, TASKS[0], 2, torch.Generator().manual_seed(0))


def test_a_trained_net() -> None:
    law = CorrelatedGaussians(1, 0.9)
    x, y = law.sample(6000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    minde, g = m.MINDE(m.ConditionalDenoiser(1, 1, 64)), torch.Generator().manual_seed(0)
    assert minde.fit(x[:5000], y[:5000], 400, 128, 0.01, g) is minde
    found = minde.information(x[5000:], y[5000:], 5, g)
    assert found.value == pytest.approx(law.information, abs=0.3)


def test_fitting_in_a_region_of_autocast() -> None:
    """Autocast keeps casts of weights that require gradients: without care every batch would see the first ones."""
    x, y = (v.float() for v in pairs(200))
    losses = []
    for inside in (False, True):
        torch.manual_seed(0)
        minde, g = m.MINDE(m.ConditionalDenoiser(2, 2, 8)), torch.Generator().manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside), torch.set_grad_enabled(not inside):
            minde.fit(x, y, 30, 64, generator=g)
        losses.append(minde(x, y, torch.Generator().manual_seed(2)).item())
    assert losses[0] == losses[1]


def test_bad_input() -> None:
    (x, y), (one, both) = pairs(30), exact(TASKS[0])
    with pytest.raises(ValueError, match="at least 40 draws in all, got 30 rows and 1 draws"):
        m.diffusion_kl(one, one, x, TASKS[0])
    with pytest.raises(ValueError, match="pairs, row by row; got 30 and 29 rows"):
        m.diffusion_information(one, one, x, y[:29], TASKS[0])
    with pytest.raises(ValueError, match="pairs, row by row; got 29 and 30 rows"):
        m.diffusion_joint_information(both, one, one, x[:29], y, TASKS[0])
    with pytest.raises(ValueError, match="std above 0 and at least 2 rows, got 0 and 30"):
        m.diffusion_entropy(one, x, TASKS[0], 0.0)
    with pytest.raises(ValueError, match="std above 0 and at least 2 rows, got 1 and 1"):
        m.diffusion_entropy(one, x[:1], TASKS[0], draws=40)
    for rows, words in ((x.long(), "a floating dtype, got torch.int64"), (x * math.nan, "x holds NaN")):
        with pytest.raises(ValueError, match=words):
            m.diffusion_kl(one, one, rows, TASKS[0], draws=2)
        with pytest.raises(ValueError, match=words):
            m.MINDE(Spy()).fit(rows, y, 1)
    with pytest.raises(ValueError, match="y holds NaN"):
        m.diffusion_joint_information(both, one, one, x, y * math.nan, TASKS[0], draws=2)
    with pytest.raises(ValueError, match="told must be above 0 and below 1, got 1"):
        m.MINDE(Spy(), told=1.0)
    with pytest.raises(ValueError, match="steps and batch must be at least 1, got 0 and 256"):
        m.MINDE(Spy()).fit(x, y, 0)
