"""Batch styles standardization."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.augmentation import batch_styles
from wellposed.augmentation.batch_styles import BatchStyles, low_frequencies, with_style_of
from wellposed.papers.nets import ConvNet, seeded


def images(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("height", "width", "ratio"), [(5, 6, 0.4), (4, 4, 0.6), (6, 5, 1.0)])
def test_by_a_transform_written_out(height: int, width: int, ratio: float) -> None:
    x, donor = images(1, height, width)[0, 0], images(1, height, width, 1)[0, 0]
    a, b = low_frequencies(height, width, ratio)

    def spectrum(image: Tensor, u: int, v: int) -> complex:
        return sum(
            float(image[i, j]) * cmath.exp(-2j * math.pi * (u * i / height + v * j / width))
            for i in range(height)
            for j in range(width)
        )

    mixed = {}
    for u in range(height):
        for v in range(width):
            own, other = spectrum(x, u, v), spectrum(donor, u, v)
            low = min(u, height - u) <= a and min(v, width - v) <= b
            mixed[u, v] = abs(other) * own / abs(own) if low else own
    found = with_style_of(x[None, None], donor, ratio)[0, 0]
    for i in range(height):
        for j in range(width):
            value = sum(
                f * cmath.exp(2j * math.pi * (u * i / height + v * j / width)) for (u, v), f in mixed.items()
            ) / (height * width)
            assert abs(value.imag) < 1e-12, "the rectangle is not symmetric"
            assert float(found[i, j]) == pytest.approx(value.real, abs=1e-12)


def test_rectangles_are_odd_and_cover_about_the_ratio() -> None:
    assert low_frequencies(8, 8, 0.0) == (-1, -1)
    assert low_frequencies(32, 32, 9 / 1024) == (1, 1)  # 3 x 3 of 32 x 32
    assert low_frequencies(32, 32, 0.25) == (7, 7)  # a side of 16 becomes 15
    assert low_frequencies(8, 8, 1.0) == (4, 4)


def test_ratio_0_is_the_identity_and_the_donor_keeps_its_image() -> None:
    x = images(4, 8, 7)
    assert with_style_of(x, x[2], 0.0) is x
    for ratio in (0.1, 0.5, 1.0):
        torch.testing.assert_close(with_style_of(x, x[2], ratio)[2], x[2])


def test_ratio_1_equalises_all_amplitudes_and_keeps_all_phases() -> None:
    x = images(5, 8, 8)
    y = torch.fft.fft2(with_style_of(x, x[0], 1.0))
    torch.testing.assert_close(y.abs(), y[:1].abs().expand_as(y))
    before = torch.fft.fft2(x)
    torch.testing.assert_close(y / y.abs(), before / before.abs())


def test_brightness_is_always_among_what_is_replaced() -> None:
    x = images(5, 9, 9)
    y = with_style_of(x, x[3], 0.02)  # one frequency
    torch.testing.assert_close(y.mean((-2, -1)), x[3].mean((-2, -1)).expand(5, -1))
    torch.testing.assert_close(y - y.mean((-2, -1), keepdim=True), x - x.mean((-2, -1), keepdim=True))


def test_gradient_and_flat_images() -> None:
    x, donor = images(2, 4, 5), images(1, 4, 5, 1)[0]
    assert torch.autograd.gradcheck(lambda v: with_style_of(v, donor, 0.7), x.requires_grad_())
    flat = torch.full((1, 1, 6, 6), 0.5, requires_grad=True)
    styled = with_style_of(flat, torch.rand(1, 6, 6), 1.0)
    assert styled.isfinite().all()
    (grad,) = torch.autograd.grad(styled.square().sum(), flat)
    assert grad.isfinite().all()


def test_low_precision_and_refusals() -> None:
    half = with_style_of(torch.rand(3, 1, 8, 8).bfloat16(), torch.rand(1, 8, 8).bfloat16(), 0.5)
    assert half.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"BatchStyles needs images \(B, ..., H, W\), got inputs of shape \(3, 4\)"):
        with_style_of(torch.rand(3, 4), torch.rand(4), 0.5)
    with pytest.raises(ValueError, match="ratio is a share of the frequencies"):
        with_style_of(torch.rand(3, 4, 4), torch.rand(4, 4), 1.5)
    with pytest.raises(ValueError, match="low must be at most high"):
        BatchStyles(low=0.6, high=0.5)
    with pytest.raises(
        wp.RecipeError, match="edits images under 'x', or 'x1' and 'x2', and MaskedTokens reads neither"
    ):
        wp.Recipe(BatchStyles()).attach(nn.Linear(2, 2), MaskedTokens())


class MaskedTokens(wp.Task):
    reads = ("tokens",)
    yields = ("logits",)


def test_two_views_get_a_style_each() -> None:
    """All images of one view share the amplitudes; the two views do not."""
    seen: list[Tensor] = []

    class Watched(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().double())
            return super().forward(x)

    model = seeded(0, Watched, 4)
    recipe = wp.Recipe(BatchStyles(low=1.0)).attach(model, wp.TwoViews())
    x1, x2 = torch.rand(2, 6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe.step({"x1": x1, "x2": x2}, torch.optim.SGD(model.parameters(), lr=0.1))
    one, two = (torch.fft.fft2(v).abs() for v in seen[0].chunk(2))
    torch.testing.assert_close(one, one[:1].expand_as(one), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two, two[:1].expand_as(two), rtol=1e-4, atol=1e-4)
    assert float((one[0] - two[0]).abs().max()) > 1e-2


def test_the_share_is_drawn_between_its_ends() -> None:
    shares: list[float] = []
    method = BatchStyles(low=0.2, high=0.4)
    recipe = wp.Recipe(method).attach(seeded(0, ConvNet, 3), wp.Classify(classes=3))
    optimizer = torch.optim.SGD(recipe.bare.parameters(), lr=0.0)
    original = batch_styles.with_style_of

    def spy(x: Tensor, donor: Tensor, ratio: float) -> Tensor:
        shares.append(ratio)
        return original(x, donor, ratio)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_styles, "with_style_of", spy)
        for _ in range(20):
            recipe.step({"x": torch.rand(4, 1, 8, 8), "y": torch.arange(4) % 3}, optimizer)
    assert all(0.2 <= r <= 0.4 for r in shares)
    assert max(shares) - min(shares) > 0.1
