"""Samplers: against the papers' recursions with the exact denoiser of Gaussian data, in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed.parts.samplers import ddim, ddpm, euler, heun, sampling_levels
from wellposed.tasks import Denoise
from wellposed.tasks.noise_levels import target_of

MEAN, STD = 0.7, 1.6
KINDS = [("linear", p) for p in ("epsilon", "x0", "v")] + [("flow", p) for p in ("x0", "v", "velocity")]
KINDS += [("trig", "x0")]


class Gaussian:
    """The exact denoiser of independent coordinates with law N(MEAN, std^2)."""

    def __init__(self, task: Denoise, std: float = STD) -> None:
        self.task, self.std, self.calls = task, std, 0

    def clean(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        gain = self.std**2 * alpha / (alpha**2 * self.std**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        assert t.shape == (len(x),)
        alpha, sigma = self.task.levels(t, x)
        clean = self.clean(x, alpha, sigma)
        noise = (x - alpha * MEAN) * sigma / (alpha**2 * self.std**2 + sigma**2)
        return target_of(self.task.predict, clean, noise, alpha, sigma)


def start(rows: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_is_algorithm_2(schedule: Any, variance: Any) -> None:
    """Ho et al., with the predicted noise, and the variances beta and beta (1 - kept_{t-1}) / (1 - kept_t)."""
    task = Denoise("epsilon", schedule, steps=20)
    net, x, g = Gaussian(task), start(), generator()
    kept = task.table[0].square().tolist()
    for t in reversed(range(20)):
        before = kept[t - 1] if t else 1.0
        step = kept[t] / before  # 1 - beta
        eps = net(x, torch.full((6,), t))
        x = (x - (1 - step) / math.sqrt(1 - kept[t]) * eps) / math.sqrt(step)
        if t:
            share = (1 - before) / (1 - kept[t]) if variance == "posterior" else 1.0
            x = x + math.sqrt((1 - step) * share) * torch.randn(x.shape, generator=g, dtype=x.dtype)
    found = ddpm(Gaussian(task), task, start(), variance=variance, generator=generator())
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_equation_12(eta: float) -> None:
    task = Denoise("epsilon", "cosine", steps=50)
    net, x, g, squares = Gaussian(task), start(), generator(), task.table[0].square()
    times = sampling_levels(task, 8)[0].tolist()
    assert times[0] == 49
    assert times[-1] == 0
    for now, then in pairwise([*times, -1]):
        kept, later = float(squares[now]), float(squares[then]) if then >= 0 else 1.0
        eps = net(x, torch.full((6,), now))
        spread = eta * math.sqrt((1 - later) / (1 - kept)) * math.sqrt(1 - kept / later)
        clean = (x - math.sqrt(1 - kept) * eps) / math.sqrt(kept)
        x = math.sqrt(later) * clean + math.sqrt(max(1 - later - spread**2, 0)) * eps
        if spread:
            x = x + spread * torch.randn(x.shape, generator=g, dtype=x.dtype)
    found = ddim(Gaussian(task), task, start(), steps=8, eta=eta, generator=generator())
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


def test_ddim_with_eta_1_is_ddpm() -> None:
    for task in (Denoise("v", "cosine", steps=12), Denoise("velocity", "flow", steps=12)):
        one = ddim(Gaussian(task), task, start(), steps=None, eta=1.0, generator=generator())
        assert torch.equal(one, ddpm(Gaussian(task), task, start(), generator=generator()))


@pytest.mark.parametrize(("schedule", "predict"), KINDS)
def test_samples_do_not_depend_on_what_is_predicted(schedule: Any, predict: Any) -> None:
    first = Denoise("velocity" if schedule == "flow" else "v", schedule, steps=30)
    task = Denoise(predict, schedule, steps=30)
    for sampler in (ddpm, ddim, heun):
        more: dict[str, Any] = {} if sampler is heun else {"generator": generator()}
        one = sampler(Gaussian(first), first, start(), steps=10, **more)
        more = {} if sampler is heun else {"generator": generator()}
        other = sampler(Gaussian(task), task, start(), steps=10, **more)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_euler_and_heun_follow_the_velocity() -> None:
    """x' = u(x, t) on the straight path by the textbook's two methods."""
    task, n = Denoise("velocity", "flow"), 7
    u = Gaussian(task)
    x = y = start()
    for k in range(n, 0, -1):
        now, then = (torch.full((6,), v / n, dtype=torch.float64) for v in (k, k - 1))
        x = x - u(x, now) / n
        first = u(y, now)
        y = y - (first if k == 1 else (first + u(y - first / n, then)) / 2) / n
    torch.testing.assert_close(euler(u, task, start(), steps=n), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(heun(u, task, start(), steps=n), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "task", [Denoise("velocity", "flow"), Denoise("v", "cosine", steps=4096), Denoise("v", "trig")], ids=repr
)
def test_orders_of_convergence(task: Denoise) -> None:
    """The flow of Gaussian data keeps (x - alpha MEAN) / std(x_t): Euler halves its error, Heun quarters it."""
    x = start()
    _, alpha, sigma = sampling_levels(task, 2)
    spread = (alpha[0].square() * STD**2 + sigma[0].square()).sqrt()
    exact = MEAN + STD / spread * (x - alpha[0] * MEAN)
    for sampler, ratio in ((euler, 2), (heun, 4)):
        coarse, fine = ((sampler(Gaussian(task), task, x, steps=n) - exact).abs().max() for n in (64, 128))
        assert 0.8 * ratio < coarse / fine < 1.3 * ratio


def test_many_steps_draw_the_data() -> None:
    task = Denoise("epsilon", "cosine", steps=200)
    for variance in ("posterior", "beta"):
        x = ddpm(Gaussian(task), task, start(5_000), variance=variance, generator=generator())
        assert float(x.mean()) == pytest.approx(MEAN, abs=5 * STD / math.sqrt(x.numel()))
        assert float(x.std()) == pytest.approx(STD, rel=0.03)  # 5 standard errors


def test_one_point_is_found_in_one_step() -> None:
    """The velocity towards a point is right from the first step on; so is a prediction of the clean sample."""
    point = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    flow, clean = Denoise("velocity", "flow"), Denoise("x0", steps=9)
    found = euler(lambda x, t: (x - point) / t[:, None], flow, start(), steps=1)
    torch.testing.assert_close(found, point.expand(6, 3))
    assert torch.equal(ddpm(lambda x, t: point.expand_as(x), clean, start()), point.expand(6, 3))


def test_predicted_noise_on_the_straight_path_starts_where_it_says_something() -> None:
    task = Denoise("epsilon", "flow")
    times, alpha, _ = sampling_levels(task, 10)
    assert times[0] == 0.999
    assert (alpha > 0).all()
    assert torch.isfinite(heun(Gaussian(task), task, start(), steps=10)).all()


def test_trajectories_end_in_the_samples_and_clamps_hold() -> None:
    task = Denoise("v", "cosine", steps=10)
    for sampler in (ddpm, ddim, euler, heun):
        states = sampler(Gaussian(task), task, start(), steps=5, trajectory=True, clamp=(-0.3, 0.3))
        if sampler not in (ddpm,):
            assert torch.equal(states[-1], sampler(Gaussian(task), task, start(), steps=5, clamp=(-0.3, 0.3)))
        assert states.shape == (6, 6, 3)
        assert torch.equal(states[0], start())
        assert states[-1].abs().max() <= 0.3


class Images(nn.Module):
    """A conv net with dropout that answers as diffusers' nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))
        self.body[1].eval()

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        assert t.dtype == torch.int64
        return SimpleNamespace(sample=self.body(torch.cat([x, (t / 10).view(-1, 1, 1, 1).expand_as(x)], 1)))


def test_images_by_a_module_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model, task = Images(), Denoise(steps=10)
    modes = [m.training for m in model.modules()]
    noise = torch.randn(2, 1, 5, 5)
    one, two = (heun(model, task, noise, steps=4) for _ in range(2))
    assert torch.equal(one, two)  # no dropout
    assert one.dtype == torch.float32
    assert not one.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert task.forward(model, task.draw(noise))["prediction"].shape == noise.shape


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"steps": 0}, "steps must be 1 to 10"),
        ({"steps": 11}, "steps must be 1 to 10 with Denoise.*, got 11"),
        ({"eta": 2.0}, "eta must be 0 to 1, got 2"),
    ],
)
def test_bad_settings(settings: dict[str, Any], word: str) -> None:
    task = Denoise(steps=10)
    with pytest.raises(ValueError, match=word):
        ddim(Gaussian(task), task, start(), **settings)
    with pytest.raises(ValueError, match="variance must be posterior or beta"):
        ddpm(Gaussian(task), task, start(), variance="large")  # type: ignore[arg-type]
