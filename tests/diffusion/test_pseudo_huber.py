"""Scheduled pseudo-Huber loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed import Recipe
from wellposed.diffusion.min_snr import MinSNR
from wellposed.diffusion.pseudo_huber import PseudoHuber, pseudo_huber
from wellposed.tasks import Denoise


def errors(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("c", [0.03, 1.0, 7.0])
def test_value_by_explicit_loops(c: float) -> None:
    wanted = [2 * c * (math.sqrt(r * r + c * c) - c) for r in errors(40).tolist()]
    torch.testing.assert_close(
        pseudo_huber(errors(40), c), torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-13
    )


def test_gradient_is_bounded_by_2c() -> None:
    r = (100 * errors(50)).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: pseudo_huber(r, 0.3), (r,))
    (g,) = torch.autograd.grad(pseudo_huber(r, 0.3).sum(), r)
    assert 0.59 < g.abs().max() < 0.6
    zero = torch.zeros(2, requires_grad=True)
    (g,) = torch.autograd.grad(pseudo_huber(zero, 0.3).sum(), zero)
    assert (g == 0).all()


def test_limits_are_square_and_absolute_value() -> None:
    """Also in single precision, where sqrt(r^2 + c^2) - c would cancel."""
    r = errors(100).float()
    torch.testing.assert_close(pseudo_huber(r, 1e4), r.square(), rtol=1e-6, atol=0)
    c = 1e-6
    torch.testing.assert_close(pseudo_huber(r, c), 2 * c * r.abs(), rtol=2e-3, atol=0)  # c / |r| for the smallest


def test_schedules_are_the_papers() -> None:
    task = Denoise("epsilon", "cosine", steps=50)
    time = torch.arange(50).double() / 50
    alpha, sigma = (v.flatten() for v in task.levels(torch.arange(50), time))
    log_snr = 2 * (alpha / sigma).log()
    kept = task.table[0].square()
    for i in range(50):
        ratio = math.sqrt((1 - kept[i]) / kept[i])
        wanted = {"exponential": math.exp(math.log(0.2) * i / 50), "snr": 0.8 / (1 + ratio) ** 2 + 0.2, "constant": 0.2}
        for name, c in wanted.items():
            found = PseudoHuber(0.2, name).at(time, log_snr)  # type: ignore[arg-type]
            assert float(found[i]) == pytest.approx(c, rel=1e-12)


@pytest.mark.parametrize(("schedule", "predict"), [("linear", "v"), ("flow", "velocity")])
def test_denoise_takes_it_by_sample(schedule: Any, predict: Any) -> None:
    distance = PseudoHuber(0.1)
    task = Denoise(predict, schedule, steps=10, distance=distance)
    batch = task.draw(errors(4, 2, 3), torch.Generator().manual_seed(1))
    out = {"prediction": errors(4, 2, 3) + 0.5}
    rows = task.loss(out, batch)
    assert rows.shape == (4,)
    for i in range(4):
        alpha, sigma = (v[i] for v in task.levels(batch["t"], batch["x"]))
        x, noise = batch["x"][i], batch["noise"][i]
        target = alpha * noise - sigma * x if predict == "v" else noise - x
        c = 0.1 ** float(batch["t"][i] / (1 if schedule == "flow" else 10))
        assert float(rows[i]) == pytest.approx(float(pseudo_huber(out["prediction"][i] - target, c).mean()))


def test_weighted_it_is_one_objective_whatever_is_predicted() -> None:
    """The distance is then of the error of the noise."""
    batch = Denoise(steps=100).draw(errors(6, 3), torch.Generator().manual_seed(2))
    alpha, sigma = Denoise(steps=100).levels(batch["t"], batch["x"])
    x0 = batch["x"] + 0.3
    noise = batch["noise"] - alpha / sigma * 0.3
    answers: dict[Any, Tensor] = {"epsilon": noise, "x0": x0, "v": alpha * noise - sigma * x0}
    losses = [
        Denoise(predict, steps=100, weighting=MinSNR(), distance=PseudoHuber()).loss({"prediction": said}, batch)
        for predict, said in answers.items()
    ]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-9, atol=0)


class ConvDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("schedule", ["exponential", "snr", "constant"])
def test_a_conv_net_learns_in_two_precisions(schedule: Any) -> None:
    for autocast in (None, torch.bfloat16):
        torch.manual_seed(0)
        model, task = ConvDenoiser(), Denoise(steps=20, distance=PseudoHuber(schedule=schedule))
        g = torch.Generator().manual_seed(0)
        recipe = Recipe().attach(model, task, autocast=autocast)
        batch = task.draw(torch.randn(8, 1, 6, 6, generator=g), g)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = [float(recipe.step(batch, optimizer)["task"]) for _ in range(12)]
        assert losses[-1] < 0.95 * losses[0]


def test_bad_settings() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"c0": 0.0}, "PseudoHuber: c0 must be above 0 and at most 1, got 0"),
        ({"c0": 1.5}, "c0 must be above 0 and at most 1, got 1.5"),
        ({"c0": -1.0, "schedule": "constant"}, "c0 must be above 0, got -1"),
        ({"schedule": "linear"}, "schedule must be one of exponential, snr, constant, got 'linear'"),
    )
    for wrong, word in cases:
        with pytest.raises(ValueError, match=word):
            PseudoHuber(**wrong)
    with pytest.raises(ValueError, match="distance must be squared or a function of errors, got 'huber'"):
        Denoise(distance="huber")  # type: ignore[arg-type]
    assert eval(repr(Denoise(distance=PseudoHuber(0.2)))).distance == PseudoHuber(0.2)
