"""Photo patches, noise of known laws, and decibels."""

from __future__ import annotations

import math

import pytest
import torch

from wellposed.papers.photos import ConvDenoiser, gamma_noise, gaussian_noise, patches, photos, poisson_noise, psnr


def test_patches_are_cut_from_the_photos_and_apart() -> None:
    train, test = patches(3, 20, 10, size=8)
    assert train.shape == (20, 1, 8, 8)
    assert test.shape == (10, 1, 8, 8)
    assert 0 <= float(train.min()) < float(train.max()) <= 1
    for part, columns in ((train, photos()[:, :, :480]), (test, photos()[:, :, 480:])):
        windows = columns.unfold(1, 8, 1).unfold(2, 8, 1)[..., 0, 0]
        for patch in part[:3, 0]:
            places = (windows == patch[0, 0]).nonzero()
            assert any(torch.equal(columns[p, r : r + 8, c : c + 8], patch) for p, r, c in places.tolist())
    again, _ = patches(3, 20, 10, size=8)
    other, _ = patches(4, 20, 10, size=8)
    assert torch.equal(train, again)
    assert not torch.equal(train, other)


def test_noise_has_the_mean_and_variance_it_says() -> None:
    x, g = torch.full((200_000,), 0.5), torch.Generator().manual_seed(0)
    for y, variance in (
        (gaussian_noise(x, 0.3, g), 0.09),
        (poisson_noise(x, 0.2, g), 0.1),
        (gamma_noise(x, 4.0, g), 0.0625),
    ):
        assert abs(float(y.mean()) - 0.5) < 4 * math.sqrt(variance / len(x))
        assert float(y.var()) == pytest.approx(variance, rel=0.03)


def test_decibels() -> None:
    clean = torch.zeros(4, 1, 2, 2)
    assert psnr(clean + 0.1, clean) == pytest.approx(20.0, abs=1e-5)


def test_the_denoiser_takes_any_size() -> None:
    assert ConvDenoiser(3, width=4, depth=4)(torch.randn(2, 3, 7, 5)).shape == (2, 3, 7, 5)
