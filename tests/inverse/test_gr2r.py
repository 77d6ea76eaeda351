"""Recorruption: the identities that make it unbiased, and denoising without clean images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.inverse.gr2r import GR2R, Family, Noise, recorrupt
from wellposed.papers.photos import gamma_noise, gaussian_noise, poisson_noise

DRAWS = 400_000
LAWS: list[tuple[Family, float, Any]] = [
    ("gaussian", 0.7, gaussian_noise),
    ("poisson", 0.2, poisson_noise),
    ("gamma", 3.0, gamma_noise),
]
VARIANCE = {"gaussian": 0.7**2, "poisson": 0.2 * 1.5, "gamma": 1.5**2 / 3}  # of y around x = 1.5


def seed(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def standard_errors(sample: Tensor, mean: float) -> float:
    """By how many standard errors the sample's mean misses ``mean``."""
    return float((sample.mean() - mean).abs() / (sample.std() / math.sqrt(len(sample))))


def conditional(y1: Tensor, y2: Tensor, x: float, bins: int = 10) -> float:
    """The worst of E[y2 | y1 in a bin] = x, in standard errors; bins of equally many."""
    parts = y2[y1.argsort(stable=True)].chunk(bins)
    return max(standard_errors(part, x) for part in parts)


@pytest.mark.parametrize("alpha", [0.15, 0.5])
@pytest.mark.parametrize(("law", "level", "noise"), LAWS, ids=[law[0] for law in LAWS])
def test_the_targets_mean_given_the_input_is_the_clean_image(
    law: Family, level: float, noise: Any, alpha: float
) -> None:
    x = torch.full((DRAWS,), 1.5, dtype=torch.float64)
    y = noise(x, level, seed()).double()
    y1, y2 = recorrupt(y, law, level, alpha, seed(1))
    assert standard_errors(y1, 1.5) < 4
    assert standard_errors(y2, 1.5) < 4
    assert conditional(y1, y2, 1.5) < 4
    naive = conditional(y1, y, 1.5)  # the same look does see it where y itself is the target
    assert naive > 40
    assert y1.var().item() == pytest.approx(VARIANCE[law] / (1 - alpha), rel=0.02)
    assert y2.var().item() == pytest.approx(VARIANCE[law] / alpha, rel=0.02)


@pytest.mark.parametrize(("law", "level", "noise"), LAWS, ids=[law[0] for law in LAWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_two_parts_make_the_whole(law: Family, level: float, noise: Any, dtype: torch.dtype) -> None:
    y = noise(torch.full((50, 4), 2.0, dtype=torch.float64), level, seed()).to(dtype)
    y1, y2 = recorrupt(y, law, level, 0.3, seed(1))
    assert y1.dtype == y2.dtype == dtype
    torch.testing.assert_close(0.3 * y2 + 0.7 * y1, y, rtol=0, atol=16 * torch.finfo(dtype).eps * float(y.abs().max()))


def test_photons_are_counted_whole() -> None:
    y = poisson_noise(torch.full((1000,), 3.0), 0.1, seed())
    y1, y2 = recorrupt(y, "poisson", 0.1, 0.25, seed(1))
    for part, share in ((y1, 0.75), (y2, 0.25)):
        counts = part * share / 0.1
        assert float((counts - counts.round()).abs().max()) < 1e-4


def test_a_copy_of_any_additive_noise_is_exact_at_one_half() -> None:
    """E[n - w | n + w] = 0 for independent n, w of one law, here a skew one with mean 1."""

    def exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.empty_like(like).exponential_(generator=generator)

    x = torch.full((DRAWS,), 1.5, dtype=torch.float64)
    y = x + 0.4 * exponential(x, seed())
    y1, y2 = recorrupt(y, exponential, 0.4, 0.5, seed(1))
    assert conditional(y1, y2, 1.5) < 4
    y1, y2 = recorrupt(y - 0.4, "gaussian", 0.4, 0.5, seed(1))  # the same mean and variance do not do
    assert conditional(y1, y2, 1.5) > 10


def test_matched_moments_do_for_polynomials() -> None:
    """Skew noise at alpha 0.2, so tau 1/2: w needs its variance, and twice its third moment."""

    def two_values(like: Tensor, generator: torch.Generator | None) -> Tensor:
        """A coin with mean 0, variance 1 and third moment 4 = (1 - 2 p) / sqrt(p (1 - p)): 2 / tau."""
        p = 0.5 - 1 / math.sqrt(5)
        high = torch.rand(like.shape, generator=generator, dtype=like.dtype) < p
        return torch.where(high, math.sqrt((1 - p) / p), -math.sqrt(p / (1 - p)))

    x = torch.full((DRAWS,), 1.5, dtype=torch.float64)
    n = torch.empty_like(x).exponential_(generator=seed()) - 1  # third moment 2
    assert two_values(x, seed(3)).pow(3).mean().item() == pytest.approx(4.0, rel=0.05)
    for power in (1, 2):
        y1, y2 = recorrupt(x + n, two_values, 1.0, 0.2, seed(1))
        assert standard_errors((y1 - x) ** power * (y2 - x), 0.0) < 4
    y1, y2 = recorrupt(x + n, "gaussian", 1.0, 0.2, seed(1))
    assert standard_errors((y1 - x) ** 2 * (y2 - x), 0.0) > 20


@pytest.mark.parametrize(("law", "level", "noise"), LAWS, ids=[law[0] for law in LAWS])
def test_the_best_linear_denoiser_is_the_supervised_one(law: Family, level: float, noise: Any) -> None:
    """x uniform on [1, 2]: the regression of y2 on y1 is that of x on y1."""
    x = 1 + torch.rand(DRAWS, generator=seed(2), dtype=torch.float64)
    y1, y2 = recorrupt(noise(x, level, seed()).double(), law, level, 0.15, seed(1))

    def slope(target: Tensor) -> tuple[float, float]:
        centred = y1 - y1.mean()
        value = (centred * (target - target.mean())).sum() / centred.square().sum()
        rest = target - target.mean() - value * centred
        return float(value), float(rest.std() / centred.std() / math.sqrt(DRAWS))

    (ours, error), (supervised, _) = slope(y2), slope(x)
    assert abs(ours - supervised) < 4 * error
    assert slope(2 * y2 - x)[0] != pytest.approx(supervised, abs=1e-6)  # and the two are different numbers


def test_noisy_images_are_all_that_a_batch_needs() -> None:
    batch = {"x": torch.rand(4, 3)}
    with pytest.raises(wp.RecipeError, match="task Regress needs 'y'"):
        wp.Recipe().attach(nn.Linear(3, 3), wp.Regress(), example=batch)
    recipe = wp.Recipe(GR2R(level=0.1)).attach(nn.Linear(3, 3), wp.Regress(), example=batch)
    recipe.step(batch, torch.optim.SGD(recipe.model.parameters(), lr=0.1))
    with pytest.raises(wp.RecipeError, match="task Regress needs 'x'"):
        wp.Recipe(GR2R(level=0.1)).attach(nn.Linear(3, 3), wp.Regress(), example={"y": batch["x"]})


def test_a_level_for_every_pixel() -> None:
    y, level = torch.zeros(2, DRAWS // 4), torch.tensor([[0.1], [2.0]])
    y1, _ = recorrupt(y, "gaussian", level, 0.5, seed())
    torch.testing.assert_close(y1.std(1), level[:, 0], rtol=0.02, atol=0)
    method = GR2R(level="sigma", alpha=0.5)
    recipe = wp.Recipe(method).attach(nn.Linear(3, 3), wp.Regress())
    optimizer = torch.optim.SGD(recipe.model.parameters(), lr=0.1)
    recipe.step({"x": torch.randn(4, 3), "sigma": torch.rand(4) + 0.1}, optimizer)
    recipe.step({"x": torch.randn(4, 3), "sigma": torch.rand(4, 3) + 0.1}, optimizer)
    with pytest.raises(ValueError, match="the batch has no 'sigma', the noise level"):
        recipe.step({"x": torch.randn(4, 3)}, optimizer)
    with pytest.raises(ValueError, match="give level="):
        method.restore(recipe.model, torch.randn(4, 3))


def test_levels_of_samples_mean_the_same_in_training_and_restoring() -> None:
    """As many samples as columns: broadcasting would give every column its own."""
    level = torch.tensor([1e-3, 1.0, 1e3])
    method = GR2R(level="sigma", alpha=0.5)
    found = method.restore(nn.Identity(), torch.zeros(3, 3), level=level, draws=1, generator=seed())
    y1, _ = recorrupt(torch.zeros(3, 3), "gaussian", level[:, None], 0.5, seed())
    torch.testing.assert_close(found, y1)
    with pytest.raises(ValueError, match=r"as many dimensions as the images \(3, 1, 3, 3\); got shape \(3, 3\)"):
        method.restore(nn.Identity(), torch.zeros(3, 1, 3, 3), level=torch.ones(3, 3))
    for law, *_ in LAWS:
        with pytest.raises(ValueError, match=r"a level of shape \(2, 3\) does not fit measurements \(2, 1\)"):
            recorrupt(torch.zeros(2, 1), law, torch.ones(2, 3))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_is_no_count_ends_in_nan_and_not_in_a_draw_without_end(value: float) -> None:
    """Later batches are not looked at; the recipe stops at the loss."""
    y1, y2 = recorrupt(torch.tensor([value, 2.0]), "poisson", 1.0, check=False)
    assert y1.isfinite().tolist() == y2.isfinite().tolist() == [False, True]
    recipe = wp.Recipe(GR2R(noise="poisson", level=1.0)).attach(nn.Linear(2, 2), wp.Regress())
    optimizer = torch.optim.SGD(recipe.model.parameters(), lr=0.1)
    recipe.step({"x": torch.ones(4, 2)}, optimizer)
    with pytest.raises(wp.NonFiniteError):
        recipe.step({"x": torch.full((4, 2), value)}, optimizer)


def test_half_precision_is_averaged_wide() -> None:
    y = torch.linspace(1, 2, 128).bfloat16()[:, None]
    found = GR2R(level=1e-6).restore(nn.Identity(), y, draws=15)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, y)


def test_losses_whose_minimum_is_no_mean_are_refused() -> None:
    for task in (wp.Regress("absolute"), wp.Regress("huber", delta=2.0)):
        with pytest.raises(wp.RecipeError, match=r"GR2R: only the mean of the targets is the clean image, and Regress"):
            wp.Recipe(GR2R(level=0.1)).attach(nn.Linear(3, 3), task)


@pytest.mark.parametrize(
    ("y", "noise", "level", "alpha", "said"),
    [
        (torch.ones(3), "cauchy", 1.0, 0.5, "noise must be gaussian, poisson, gamma or a function"),
        (torch.ones(3), "gaussian", 1.0, 1.0, "alpha must lie between 0 and 1, got 1"),
        (torch.ones(3), "gaussian", 0.0, 0.5, "level must be above 0"),
        (-torch.ones(3), "gamma", 1.0, 0.5, "not negative, these go down to -1"),
        (torch.tensor([1.0, math.nan]), "poisson", 1.0, 0.5, "measurements must be finite"),
        (torch.tensor([1.0, 1.5]), "poisson", 1.0, 0.5, "whole multiples of the gain"),
    ],
)
def test_what_cannot_be(y: Tensor, noise: Noise, level: float, alpha: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recorrupt(y, noise, level, alpha)


def test_other_bad_input() -> None:
    with pytest.raises(TypeError, match=r"real measurements, but these are torch\.int64"):
        recorrupt(torch.arange(3), "poisson", 1.0)
    with pytest.raises(ValueError, match="noise must be gaussian"):
        GR2R(noise="cauchy", level=1.0)  # type: ignore[arg-type]
    for level in (torch.ones(2), True):
        with pytest.raises(ValueError, match="level must be a number, or the key"):
            GR2R(level=level)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha must be below 1"):
        GR2R(level=1.0, alpha=1.0)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        GR2R(level=1.0).restore(nn.Linear(2, 2), torch.zeros(1, 2), draws=0)
    recipe = wp.Recipe(GR2R(noise="poisson", level=0.3)).attach(nn.Linear(2, 2), wp.Regress())
    with pytest.raises(ValueError, match="whole multiples"):
        recipe.step({"x": torch.rand(4, 2)}, torch.optim.SGD(recipe.model.parameters(), lr=0.1))


class Attention(nn.Module):
    """A transformer layer over pixels (B, T), each a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 8), nn.Linear(8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x.unsqueeze(-1)))).squeeze(-1)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_denoises_without_clean_images(kind: str) -> None:
    """Constant images of different brightness: the net learns to average, which copying y would not do."""
    torch.manual_seed(0)
    if kind == "conv":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )
        shape: tuple[int, ...] = (1, 6, 6)
    else:
        model, shape = Attention(), (8,)
    ones = torch.ones(256, *shape)
    clean = ones * torch.linspace(0.2, 2, 256).view(-1, *[1] * len(shape))
    noisy = gamma_noise(clean, 4.0, seed())
    method = GR2R(noise="gamma", level=4.0)
    recipe = wp.Recipe(method).attach(model, wp.Regress())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        recipe.step({"x": noisy}, optimizer)
    test = gamma_noise(clean, 4.0, seed(1))
    found = method.restore(recipe.finish(), test, draws=5, generator=seed(2))
    assert model.training, "restore leaves the mode as it was"
    error, before = (found - clean).square().mean(), (test - clean).square().mean()
    assert error < 0.5 * before
