"""Denoising: schedules against their definitions, targets against one another, weights against the papers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed import Recipe
from wellposed.diffusion.min_snr import MinSNR
from wellposed.diffusion.snr_weights import PowerSNR
from wellposed.tasks import Denoise, cosine_betas, linear_betas

STEPS = 50
DISCRETE = ["epsilon", "x0", "v"]


def test_linear_variances_are_the_papers() -> None:
    betas = linear_betas(1000)
    assert betas[0] == pytest.approx(1e-4)
    assert betas[-1] == pytest.approx(0.02)
    assert torch.allclose(betas.diff(), betas.diff()[0].expand(999), atol=1e-15)
    assert ((linear_betas(1) > 0) & (linear_betas(1) < 1)).all()


def test_cosine_variances_make_a_squared_cosine() -> None:
    kept = (1 - cosine_betas(1000)).cumprod(0)
    for t in (1, 500, 900):

        def f(t: int) -> float:
            return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

        assert kept[t - 1] == pytest.approx(f(t) / f(0))
    assert cosine_betas(1000).max() == 0.999


@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow", "trig"])
def test_time_turns_signal_into_noise(schedule: Any) -> None:
    task = Denoise("x0", schedule, steps=STEPS)
    t = torch.linspace(0, 1, STEPS, dtype=torch.float64) if task.continuous else torch.arange(STEPS)
    alpha, sigma = (v.flatten() for v in task.levels(t, torch.zeros(STEPS, 2, dtype=torch.float64)))
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    total = alpha + sigma if schedule == "flow" else alpha**2 + sigma**2
    torch.testing.assert_close(total, torch.ones(STEPS, dtype=torch.float64))


class Oracle(nn.Module):
    """Knows the clean sample and answers with the target asked for, off by a given error of x0."""

    def __init__(self, task: Denoise, batch: dict[str, Tensor], error: Tensor) -> None:
        super().__init__()
        self.task, self.batch, self.error = task, batch, error

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.task.levels(t, x_t)
        x0 = self.batch["x"] + self.error
        noise = (x_t - alpha * x0) / sigma  # the noise that fits x_t and this x0
        return {
            "epsilon": noise,
            "x0": x0,
            "v": alpha * noise - sigma * x0,
            "velocity": noise - x0,
        }[self.task.predict]


def rows(task: Denoise, batch: dict[str, Tensor], error: Tensor) -> Tensor:
    return task.loss(task.forward(Oracle(task, batch, error), batch), batch)


def batch_of(task: Denoise) -> dict[str, Tensor]:
    torch.manual_seed(0)
    t = torch.linspace(0.01, 0.99, STEPS, dtype=torch.float64) if task.continuous else torch.arange(STEPS)
    return {"x": torch.randn(STEPS, 3).double(), "t": t, "noise": torch.randn(STEPS, 3).double()}


@pytest.mark.parametrize(
    ("schedule", "predict"), [(s, p) for s in ("linear", "cosine", "trig") for p in DISCRETE] + [("flow", "velocity")]
)
def test_a_perfect_prediction_costs_nothing(schedule: Any, predict: Any) -> None:
    task = Denoise(predict, schedule, steps=STEPS)
    batch = batch_of(task)
    assert rows(task, batch, torch.zeros(STEPS, 3)).max() < 1e-20


def inverse_root(log_snr: Tensor) -> Tensor:
    return torch.exp(-log_snr / 2)


@pytest.mark.parametrize("weighting", [MinSNR(), inverse_root])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow", "trig"])
def test_a_weighted_loss_is_the_same_whatever_is_predicted(schedule: Any, weighting: Any) -> None:
    error = torch.randn(STEPS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kinds: list[Any] = [*DISCRETE, "velocity"] if schedule == "flow" else DISCRETE
    found = []
    for predict in kinds:
        task = Denoise(predict, schedule, weighting=weighting, steps=STEPS)
        found.append(rows(task, batch_of(task), error))
    for one, other in pairwise(found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("predict", "published"),
    [
        ("epsilon", lambda snr, g: snr.clamp(max=g) / snr),
        ("x0", lambda snr, g: snr.clamp(max=g)),
        ("v", lambda snr, g: snr.clamp(max=g) / (snr + 1)),
    ],
)
def test_min_snr_weights_are_the_papers(predict: Any, published: Any) -> None:
    simple = Denoise(predict, steps=1000)
    weighted = Denoise(predict, steps=1000, weighting=MinSNR(5.0))
    t = torch.arange(1000)
    batch = {"x": torch.ones(1000, 1).double(), "noise": torch.zeros(1000, 1).double(), "t": t}
    out = {"prediction": torch.full((1000, 1), 7.0).double()}
    alpha, sigma = (v.flatten() for v in simple.levels(t, batch["x"]))
    snr = alpha**2 / sigma**2
    torch.testing.assert_close(weighted.loss(out, batch), simple.loss(out, batch) * published(snr, 5.0))


@pytest.mark.parametrize("weighting", ["simple", MinSNR()])
@pytest.mark.parametrize(
    ("schedule", "predict"), [(s, p) for s in ("flow", "trig") for p in DISCRETE] + [("flow", "velocity")]
)
def test_the_ends_of_time_are_finite(schedule: Any, predict: Any, weighting: Any) -> None:
    task = Denoise(predict, schedule, weighting=weighting)
    p = torch.randn(2, 3, requires_grad=True)
    batch = {"x": torch.randn(2, 3), "t": torch.tensor([0.0, 1.0]), "noise": torch.randn(2, 3)}
    value = task.loss({"prediction": p}, batch)
    torch.autograd.backward(value.sum())
    assert torch.isfinite(value).all()
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighting", [MinSNR(), PowerSNR(1.0)])
@pytest.mark.parametrize(("schedule", "predict"), [("cosine", p) for p in DISCRETE] + [("flow", "velocity")])
def test_the_loss_of_half_precision_is_computed_in_single(
    schedule: Any, predict: Any, weighting: Any, dtype: torch.dtype
) -> None:
    """Weights rounded to bfloat16 are wrong by percents, and errors times SNR overflow in float16."""
    task, g = Denoise(predict, schedule, weighting=weighting), torch.Generator().manual_seed(0)
    t = torch.linspace(0.01, 0.99, 1000).to(dtype) if task.continuous else torch.arange(1000)
    x, noise, said = (torch.randn(1000, 3, generator=g).to(dtype) for _ in range(3))
    found = task.loss({"prediction": said}, {"x": x, "noise": noise, "t": t})
    exact = {"x": x.double(), "noise": noise.double(), "t": t.double() if task.continuous else t}
    torch.testing.assert_close(found.double(), task.loss({"prediction": said.double()}, exact), rtol=1e-4, atol=0)


def test_times_in_half_precision_are_not_a_grid() -> None:
    """Uniform draws in bfloat16 would be multiples of 1 / 256, 0 among them."""
    t = Denoise("velocity", "flow").draw(torch.zeros(4000, 1).bfloat16(), torch.Generator().manual_seed(0))["t"]
    assert t.dtype == torch.bfloat16
    assert (t > 0).all()
    small = t[t < 1 / 64].double() * 256
    assert (small != small.round()).double().mean() > 0.5


@pytest.mark.parametrize("predict", DISCRETE)
def test_gradient(predict: Any) -> None:
    task = Denoise(predict, "cosine", weighting=MinSNR(), steps=4)
    batch = {"x": torch.randn(4, 2).double(), "t": torch.arange(4), "noise": torch.randn(4, 2).double()}
    p = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: task.loss({"prediction": q}, batch), (p,))


def test_draws_repeat_with_their_generator_and_cover_time() -> None:
    x = torch.randn(4000, 2)
    for task in (Denoise(steps=10), Denoise("velocity", "flow")):
        one, two = (task.draw(x, torch.Generator().manual_seed(3)) for _ in range(2))
        assert all(torch.equal(one[k], two[k]) for k in one)
        assert one["noise"].mean().abs() < 0.05
        t = one["t"]
        if task.schedule == "flow":
            assert 0 <= t.min() < 0.01
            assert 0.99 < t.max() <= 1
        else:
            assert sorted(set(t.tolist())) == list(range(10))


@pytest.mark.parametrize("schedule", ["flow", "trig"])
def test_log_noise_is_normal(schedule: Any) -> None:
    task = Denoise("v", schedule, log_noise=(-0.5, 1.2))
    batch = task.draw(torch.zeros(20_000, 1).double(), torch.Generator().manual_seed(0))
    alpha, sigma = task.levels(batch["t"], batch["x"])
    ratio = (sigma / alpha).log()
    assert float(ratio.mean()) == pytest.approx(-0.5, abs=5 * 1.2 / math.sqrt(20_000))
    assert float(ratio.std()) == pytest.approx(1.2, rel=5 / math.sqrt(40_000))
    assert float(((ratio + 0.5) / 1.2).pow(4).mean()) == pytest.approx(3, abs=5 * math.sqrt(96 / 20_000))


def test_v_on_the_circle_is_the_preconditioning_of_karras_et_al() -> None:
    """lambda |c_skip y + c_out F(c_in y) - x|^2 with y = x + sd noise: F is -v of the data over their deviation."""
    g, std = torch.Generator().manual_seed(0), 0.5
    x, noise, net = (torch.randn(9, 4, generator=g, dtype=torch.float64) for _ in range(3))
    x = std * x
    sd = (1.2 * torch.randn(9, 1, generator=g, dtype=torch.float64) - 1.2).exp()
    total = (sd**2 + std**2).sqrt()
    y = x + sd * noise
    answers = torch.tanh(y / total + net)  # any F of c_in y
    denoised = std**2 / total**2 * y + sd * std / total * answers
    theirs = ((total / (sd * std)) ** 2 * (denoised - x) ** 2).mean(1)

    task = Denoise("v", "trig")
    t = (sd / std).atan().flatten() * (2 / math.pi)
    batch = {"x": x / std, "noise": noise, "t": t}
    out = task.forward(Returns(-answers), batch)
    torch.testing.assert_close(out["x_t"], y / total)
    torch.testing.assert_close(task.loss(out, batch), theirs, rtol=1e-10, atol=0)


class Returns(nn.Module):
    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.answer


def test_flow_matching_learns_a_point() -> None:
    """All data at one point c: the velocity at (x, t) is (x - c) / t, and at t = 1 a linear net can be just that."""
    torch.manual_seed(0)
    c, task = torch.tensor([1.0, -2.0]), Denoise("velocity", "flow")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x)

    model, generator = Net(), torch.Generator().manual_seed(0)
    recipe = Recipe().attach(model, task)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(300):
        batch = task.draw(c.expand(64, 2), generator)
        recipe.step(batch | {"t": torch.ones(64)}, optimizer)
    x = torch.randn(5, 2)
    assert (model(x, torch.ones(5)) - (x - c)).abs().max() < 0.01


def test_a_condition_is_handed_to_the_model() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            return x + condition[:, None]

    task = Denoise(steps=4)
    batch = task.draw(torch.randn(4, 2))
    out = task.forward(Net(), batch | {"condition": torch.arange(4)})
    torch.testing.assert_close(out["prediction"] - out["x_t"], torch.arange(4.0)[:, None].expand(4, 2))
    with pytest.raises(TypeError):
        task.forward(Net(), batch)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"predict": "score"}, "predict must be one of epsilon"),
        ({"schedule": "sigmoid"}, "schedule must be one of linear"),
        ({"weighting": "p2"}, "simple or a function"),
        ({"predict": "velocity"}, "schedule='flow'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"log_noise": (0.0, 1.0)}, "log_noise is .* got .* with 'linear'"),
        ({"log_noise": (0.0, 0.0), "schedule": "trig"}, "standard deviation above 0"),
    ],
)
def test_bad_settings(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Denoise(**wrong)


def test_a_prediction_of_another_shape_is_refused() -> None:
    batch = Denoise(steps=4).draw(torch.randn(4, 2))
    with pytest.raises(ValueError, match="prediction has shape"):
        Denoise(steps=4).loss({"prediction": torch.randn(4, 1)}, batch)


def test_repr_evaluates_back() -> None:
    again = eval(repr(Denoise("v", "cosine", weighting=MinSNR(), steps=7)))
    assert (again.predict, again.schedule, again.weighting, again.steps) == ("v", "cosine", MinSNR(), 7)
    assert eval(repr(Denoise("v", "trig", log_noise=(0.0, 1.0)))).log_noise == (0.0, 1.0)
