"""Input perturbation, and the exposure bias it is for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.diffusion.exposure_bias import exposure_bias
from wellposed.diffusion.input_perturbation import InputPerturbation, perturbed_noise
from wellposed.parts.samplers import ddim, ddpm, sampling_levels
from wellposed.tasks import Denoise


class Seen(nn.Module):
    """A linear denoiser that keeps what it was shown."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.body = nn.Linear(width, width, bias=False)
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.shown.append(x.detach())
        return self.body(x)


def still(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0)


@pytest.mark.parametrize("predict", ["epsilon", "x0", "v"])
def test_the_input_is_perturbed_and_the_target_is_not(predict: Any) -> None:
    torch.manual_seed(0)
    task = Denoise(predict, steps=10)
    batch = task.draw(torch.randn(5000, 2))
    model = Seen()
    plain = wp.Recipe().attach(model, task)
    clean_loss = plain.step(batch, still(model))["task"]
    plain.detach()
    model.shown.clear()
    recipe = wp.Recipe(InputPerturbation(gamma=0.3)).attach(model, task)
    loss = recipe.step(batch, still(model))["task"]
    alpha, sigma = task.levels(batch["t"], batch["x"])
    xi = ((model.shown[0] - alpha * batch["x"]) / sigma - batch["noise"]) / 0.3
    assert float(xi.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * xi.numel()))
    assert abs(float((xi * batch["noise"]).mean())) < 5 / math.sqrt(xi.numel())
    target = {"epsilon": batch["noise"], "x0": batch["x"], "v": alpha * batch["noise"] - sigma * batch["x"]}[predict]
    wanted = (model.body(model.shown[0]) - target).square().mean()
    torch.testing.assert_close(loss, wanted.detach())
    assert loss != clean_loss


def test_a_linear_net_on_gaussian_data_learns_the_closed_form() -> None:
    """Slope sigma / (alpha^2 std^2 + sigma^2 (1 + gamma^2)), the least squares of noise on perturbed inputs."""
    g, n, gamma, std = torch.Generator().manual_seed(0), 400_000, 0.3, 1.7
    x, noise = (torch.randn(n, generator=g, dtype=torch.float64) for _ in range(2))
    alpha, sigma = math.sqrt(0.6), math.sqrt(0.4)
    shown = alpha * std * x + sigma * perturbed_noise(noise, gamma, g)
    slope = float((shown * noise).sum() / shown.square().sum())
    exact = sigma / (alpha**2 * std**2 + sigma**2 * (1 + gamma**2))
    assert slope == pytest.approx(exact, abs=5 / math.sqrt(n) / float(shown.std()))


def test_two_perturbations_add_their_variances() -> None:
    task = Denoise(steps=10)
    batch = task.draw(torch.zeros(20_000, 2), torch.Generator().manual_seed(0))
    model = Seen()
    recipe = wp.Recipe(InputPerturbation(gamma=0.3), InputPerturbation(gamma=0.4)).attach(model, task)
    recipe.step(batch, still(model))
    added = model.shown[0] / task.levels(batch["t"], batch["x"])[1] - batch["noise"]
    assert float(added.std()) == pytest.approx(0.5, rel=5 / math.sqrt(2 * added.numel()))


def test_gamma_may_be_a_schedule() -> None:
    task, model = Denoise(steps=10), Seen()
    batch = task.draw(torch.randn(4, 2), torch.Generator().manual_seed(0))
    recipe = wp.Recipe(InputPerturbation(gamma=wp.Linear(0.0, 0.2))).attach(model, task)
    for progress in (0.0, 1.0):
        recipe.step(batch, still(model), progress=progress)
    clean = task.forward(model, batch)["x_t"]
    assert torch.equal(model.shown[0], clean)
    assert not torch.equal(model.shown[1], clean)


class ConvDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(x)


class TokenDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(("build", "shape"), [(ConvDenoiser, (1, 6, 6)), (TokenDenoiser, (5, 8))])
def test_conv_net_and_transformer_learn(build: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, task = build(), Denoise(steps=20)
    recipe = wp.Recipe(InputPerturbation()).attach(model, task)
    batch = task.draw(torch.randn(8, *shape), torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = [float(recipe.step(batch, optimizer)["task"]) for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]


class Other(wp.Task):
    """A task with noise of its own."""

    reads = ("x", "noise")


def test_another_task_is_refused() -> None:
    """It would not look at what is perturbed."""
    with pytest.raises(wp.RecipeError, match="InputPerturbation perturbs the noise of a Denoise task, got Other"):
        wp.Recipe(InputPerturbation()).attach(nn.Linear(2, 2), Other())
    with pytest.raises(wp.RecipeError, match="InputPerturbation needs 'noise'"):
        wp.Recipe(InputPerturbation()).attach(nn.Linear(2, 2), wp.Classify(classes=2))


# ---- exposure bias
@pytest.mark.parametrize("too_small", [0.0, 0.1])
def test_exposure_bias_of_a_linear_denoiser_is_its_recursion(too_small: float) -> None:
    """Each step multiplies the state and adds noise, so its variance follows; an error of the slope drifts."""
    task, std = Denoise("x0", "cosine", steps=12), 1.7
    _, alpha, sigma = sampling_levels(task)

    def gain(a: Any, s: Any) -> Any:
        return (1 - too_small) * a * std**2 / (a**2 * std**2 + s**2)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return gain(*task.levels(t, x)) * x

    variance, wanted = 1.0, [1.0]
    for i in range(12):
        a, s, b, r = (float(v) for v in (alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]))
        step = s**2 - (a / b * r) ** 2
        factor = b * step / s**2 * float(gain(alpha[i], sigma[i])) + a / b * r**2 / s**2
        variance = factor**2 * variance + step * (r / s) ** 2
        wanted.append(math.sqrt(variance))
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 3, generator=g, dtype=torch.float64)
    found = exposure_bias(model, task, std * torch.randn(20_000, 3, generator=g).double(), noise, generator=g)
    bound = 5 / math.sqrt(2 * noise.numel())
    torch.testing.assert_close(found.sampled, torch.tensor(wanted, dtype=torch.float64), rtol=bound, atol=0)
    true = (alpha.square() * std**2 + sigma.square()).sqrt()
    torch.testing.assert_close(found.trained, true, rtol=bound, atol=0)
    if too_small:
        assert found.drift[-1] < -0.1


def test_exposure_bias_takes_any_sampler_and_shape() -> None:
    task = Denoise("velocity", "flow")
    found = exposure_bias(
        ConvDenoiser(), task, torch.randn(4, 1, 5, 5), torch.randn(3, 1, 5, 5), steps=6, sampler=ddim, eta=0.5
    )
    assert found.drift.shape == found.alpha.shape == found.sigma.shape == (7,)
    assert found.sigma[-1] == 0
    with pytest.raises(ValueError, match="needs at least 2 data and 2 samples, got 1 and 3"):
        exposure_bias(ConvDenoiser(), task, torch.randn(1, 1, 5, 5), torch.randn(3, 1, 5, 5), sampler=ddpm)
