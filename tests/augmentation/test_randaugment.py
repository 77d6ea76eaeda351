"""Operations against pictures and formulas known by hand, and the draws of RandAugment."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.augmentation.randaugment import IMAGE_OPERATIONS, RandAugment, rand_augment

UP, DOWN = torch.ones(1, dtype=torch.float64), -torch.ones(1, dtype=torch.float64)


def images(rows: int = 1, channels: int = 3, side: int = 9) -> Tensor:
    return torch.rand(rows, channels, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def apply(name: str, x: Tensor, sign: Tensor, m: float) -> Tensor:
    return IMAGE_OPERATIONS[name](x, sign, m)


def test_there_are_the_papers_fourteen() -> None:
    assert len(IMAGE_OPERATIONS) == 14


@pytest.mark.parametrize("name", [n for n in IMAGE_OPERATIONS if n not in ("autocontrast", "equalize")])
def test_magnitude_zero_changes_nothing(name: str) -> None:
    x = images()
    torch.testing.assert_close(apply(name, x, UP, 0.0), x, rtol=0, atol=1e-13)


def test_slides_are_whole_pixels_where_the_magnitude_says_so() -> None:
    x, m = images(), 331 / 150 / 9  # one pixel of nine
    right, down = apply("translate_x", x, DOWN, m), apply("translate_y", x, DOWN, m)
    torch.testing.assert_close(right[..., 1:], x[..., :-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(down[..., 1:, :], x[..., :-1, :], rtol=0, atol=1e-12)
    assert right[..., 0].abs().max() < 1e-12
    torch.testing.assert_close(apply("translate_x", x, UP, m)[..., :-1], x[..., 1:], rtol=0, atol=1e-12)


def test_turning_three_times_by_thirty_degrees_is_a_quarter_turn() -> None:
    side = torch.arange(33) - 16
    blob = torch.exp(-((side[:, None] - 6.0) ** 2 + (side[None, :] + 3.0) ** 2) / 18)[None, None].double()
    turned = blob
    for _ in range(3):
        turned = apply("rotate", turned, UP, 1.0)
    expected = torch.rot90(blob, 1, (2, 3))
    if (turned - expected).abs().max() > 0.5:
        expected = torch.rot90(blob, 3, (2, 3))
    # A bilinear interpolation adds at most 1/4 to the blob's variance of 9, along each axis.
    assert (turned - expected).abs().max() < 1 - 9 / 9.75
    for axis in (2, 3):
        centres = [(z.sum(5 - axis).squeeze() * side).sum() / z.sum() for z in (turned, expected)]
        assert abs(centres[0] - centres[1]).item() < 1e-2
    assert (apply("rotate", apply("rotate", blob, UP, 0.5), DOWN, 0.5) - blob).abs().max() < 1 - 9 / 9.5


def test_shears_keep_the_middle_and_slide_with_distance() -> None:
    x = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    x[..., 10] = 1  # an upright line through the middle
    sheared = apply("shear_x", x, UP, 1.0)[0, 0]
    columns = torch.arange(21, dtype=torch.float64)
    centre = (sheared * columns).sum(1) / sheared.sum(1)
    torch.testing.assert_close(centre, 10 - 0.3 * (columns - 10), rtol=0, atol=1e-10)
    flat = x.transpose(2, 3)
    torch.testing.assert_close(apply("shear_y", flat, UP, 1.0).transpose(2, 3)[0, 0], sheared, rtol=0, atol=1e-12)


def test_on_images_that_are_not_square_a_turn_keeps_lengths() -> None:
    x = torch.zeros(1, 1, 41, 21, dtype=torch.float64)
    x[..., 13:28, 10] = 1  # 15 pixels upright
    turned = apply("rotate", x, UP, 1.0)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(41.0).double(), torch.arange(21.0).double(), indexing="ij")
    weights = turned / turned.sum()
    spread = ((rows - 20) ** 2 * weights + (columns - 10) ** 2 * weights).sum()
    assert spread.item() == pytest.approx(56 / 3, rel=0.05)  # (15^2 - 1) / 12, and what interpolation smears


def test_tones_by_formula() -> None:
    x, f = images(), 1 + 0.9 * 0.5
    gray = (x * torch.tensor([0.299, 0.587, 0.114]).double().view(1, 3, 1, 1)).sum(1, keepdim=True)
    for sign, factor in ((UP, f), (DOWN, 2 - f)):
        torch.testing.assert_close(apply("brightness", x, sign, 0.5), (factor * x).clamp(0, 1), rtol=0, atol=1e-12)
        expected = (gray + factor * (x - gray)).clamp(0, 1)
        torch.testing.assert_close(apply("color", x, sign, 0.5), expected, rtol=0, atol=1e-6)
        expected = (gray.mean() + factor * (x - gray.mean())).clamp(0, 1)
        torch.testing.assert_close(apply("contrast", x, sign, 0.5), expected, rtol=0, atol=1e-6)
    assert torch.equal(apply("solarize", x, UP, 1.0), 1 - x)
    half = apply("solarize", x, UP, 0.5)
    assert torch.equal(half, torch.where(x >= 128 / 255, 1 - x, x))
    sixteen = apply("posterize", x, UP, 1.0)
    assert torch.equal(sixteen, ((x * 255).round() / 16).floor() * (16 / 255))
    assert len(set(sixteen.flatten().tolist())) <= 16


def test_sharpness_by_loops() -> None:
    x = images(channels=1, side=5)
    found = apply("sharpness", x, DOWN, 0.5)
    for i in range(5):
        for j in range(5):
            near = x[0, 0, i - 1 : i + 2, j - 1 : j + 2] if 0 < i < 4 and 0 < j < 4 else None
            blurred = x[0, 0, i, j] if near is None else (near.sum() + 4 * x[0, 0, i, j]) / 13
            assert found[0, 0, i, j].item() == pytest.approx((0.45 * blurred + 0.55 * x[0, 0, i, j]).item(), rel=1e-6)


def test_autocontrast_and_equalize() -> None:
    x = 0.25 + images(rows=2, side=64) / 4
    stretched = apply("autocontrast", x, UP, 0.0)
    assert stretched.amin((2, 3)).abs().max() == 0
    assert (stretched.amax((2, 3)) - 1).abs().max() < 1e-12
    flat = apply("equalize", x, UP, 0.0)
    share = (flat < 0.5).double().mean((2, 3))
    assert (share - 0.5).abs().max() < 0.05
    even = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    for name in ("autocontrast", "equalize"):
        assert torch.equal(apply(name, even, UP, 0.0), even)


def test_equalize_is_the_classical_algorithm() -> None:
    x = images(channels=1, side=32)
    values = [round(v * 255) for v in x.flatten().tolist()]
    counts = [values.count(v) for v in range(256)]
    step = (len(values) - counts[max(values)]) // 255
    table = [min(255, (sum(counts[:v]) + step // 2) // step) for v in range(256)]
    expected = [table[v] / 255 for v in values]
    assert apply("equalize", x, UP, 0.0).flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_draws() -> None:
    x = images(rows=400, channels=1, side=3)
    g = torch.Generator().manual_seed(0)
    found = rand_augment(x, 1, 1.0, g, ("identity", "solarize"))
    kept = (found == x).flatten(1).all(1)
    inverted = (found == 1 - x).flatten(1).all(1)
    assert (kept ^ inverted).all()
    assert abs(kept.double().mean().item() - 0.5) < 4 * 0.5 / 20
    twice = rand_augment(x, 2, 1.0, g, ("solarize",))
    torch.testing.assert_close(twice, x, rtol=0, atol=1e-15)
    same = [rand_augment(x, 2, 0.5, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_operation_stays_in_range_type_and_shape(dtype: torch.dtype) -> None:
    for channels in (1, 3, 4):
        x = images(rows=6, channels=channels).to(dtype)
        signs = torch.tensor([1, -1] * 3, dtype=dtype)
        for name in IMAGE_OPERATIONS:
            found = apply(name, x, signs, 0.7)
            assert found.dtype == dtype, name
            assert found.shape == x.shape
            assert found.min() >= -0.01
            assert found.max() <= 1.01


def test_method_keeps_the_range_it_is_told_and_follows_a_schedule() -> None:
    seen: list[Tensor] = []

    class Keep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(81, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return self.head(x.flatten(1))

    model, x = Keep(), 4 * images(rows=12, channels=1).float() - 2
    method = RandAugment(low=-2.0, high=2.0, magnitude=wp.Linear(0.0, 1.0), ops=("translate_x",))
    recipe = wp.Recipe(method).attach(model, wp.Classify())
    for progress in (0.0, 1.0):
        recipe.step({"x": x, "y": torch.arange(12) % 3}, torch.optim.SGD(model.parameters()), progress=progress)
    torch.testing.assert_close(seen[0], x, rtol=0, atol=1e-5)
    assert (seen[1] == -2).float().mean() > 0.4  # two slides of 4 pixels, together or against each other: black


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no operation flip; there are identity"):
        RandAugment(ops=("flip",))
    with pytest.raises(ValueError, match="low must be below high, got 1 and 1"):
        RandAugment(low=1.0)
    model = nn.Linear(6, 3)
    recipe = wp.Recipe(RandAugment()).attach(model, wp.Classify())
    with pytest.raises(
        ValueError, match=r"needs images \(B, C, H, W\) of real numbers, got torch.float32 of shape \(4, 6\)"
    ):
        recipe.step({"x": torch.randn(4, 6), "y": torch.arange(4) % 3}, torch.optim.SGD(model.parameters()))
