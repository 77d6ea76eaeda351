"""Batch styles against the full complex transform."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.augmentation.batch_styles import BatchStyles, low_frequencies, standardize_styles


def images(height: int = 9, width: int = 9) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.rand(5, 3, height, width, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(("height", "width"), [(9, 9), (8, 8), (7, 12)])
@pytest.mark.parametrize("ratio", [0.02, 0.3, 0.8])
def test_by_the_full_transform_one_frequency_at_a_time(height: int, width: int, ratio: float) -> None:
    x = images(height, width)
    spectrum = torch.fft.fft2(x)
    changed = spectrum.clone()
    rows, columns = (max(0, round((ratio**0.5 * side - 1) / 2)) for side in (height, width))
    for i in range(-rows, rows + 1):
        for j in range(-columns, columns + 1):
            changed[..., i, j] = torch.polar(
                spectrum[3, ..., i, j].abs().expand(5, 3).contiguous(), spectrum[..., i, j].angle()
            )
    expected = torch.fft.ifft2(changed)
    assert expected.imag.abs().max() < 1e-14  # odd sides: the square is symmetric
    torch.testing.assert_close(standardize_styles(x, 3, ratio), expected.real, rtol=0, atol=1e-13)


@pytest.mark.parametrize("side", [8, 9])
def test_ends_of_the_range(side: int) -> None:
    x = images(side, side)
    torch.testing.assert_close(standardize_styles(x, 1, 0.0), x, rtol=0, atol=1e-14)
    whole = torch.fft.fft2(standardize_styles(x, 1, 1.0))
    assert whole.abs().std(0).max() < 1e-12
    torch.testing.assert_close(standardize_styles(x, 1, 1.0)[1], x[1], rtol=0, atol=1e-14)
    assert not low_frequencies(side, side, 0.0).any()
    assert low_frequencies(side, side, 1.0).all()


def test_shares_are_of_area_and_any_equalises_the_mean() -> None:
    for ratio in (0.1, 0.25, 0.5, 0.9):
        low = low_frequencies(101, 101, ratio)
        share = (2 * low.sum() - low[:, 0].sum()).item() / 101**2  # all but the first column stand for two
        assert abs(share - ratio) < 2 * ratio**0.5 / 101 + 1 / 101**2  # a side is off by one at most
    found = standardize_styles(images(), 2, 1e-6)
    assert found.mean((2, 3)).std(0).max() < 1e-14


def test_a_donor_for_each_image() -> None:
    x, donors = images(), torch.tensor([4, 3, 2, 1, 0])
    found = standardize_styles(x, donors, 0.4)
    for i in range(5):
        torch.testing.assert_close(found[i], standardize_styles(x, int(donors[i]), 0.4)[i], rtol=0, atol=1e-14)


def test_types_and_gradient() -> None:
    assert standardize_styles(images().bfloat16(), 0, 0.5).dtype == torch.bfloat16
    x = images(3, 4)[:2, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: standardize_styles(x, 0, 0.5), (x,))


class Views(wp.Task):
    """Looks at two views; each has a style of its own."""

    reads, yields = ("x1", "x2"), ("z",)

    def forward(self, model: nn.Module, batch: object) -> dict[str, Tensor]:
        assert isinstance(batch, dict)
        self.seen = batch["x1"], batch["x2"]
        return {"z": model(batch["x1"].flatten(1))}

    def loss(self, out: dict[str, object], batch: object) -> Tensor:
        assert isinstance(out["z"], Tensor)
        return out["z"].square().mean(1)


def test_every_view_has_its_own_donor() -> None:
    task, model, x = Views(), nn.Linear(243, 2).double(), images()
    recipe = wp.Recipe(BatchStyles(keys=("x1", "x2"), low=1.0)).attach(model, task)
    pairs = set()
    for _ in range(12):
        recipe.step({"x1": x, "x2": x}, torch.optim.SGD(model.parameters(), lr=0.0))
        means = [seen.mean((1, 2, 3)) for seen in task.seen]
        assert all(m.std() < 1e-12 for m in means)
        pairs.add(tuple(int((x.mean((1, 2, 3)) - m[0]).abs().argmin()) for m in means))
    assert any(a != b for a, b in pairs)
    assert len(pairs) > 3


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"low must be at most high, got 0.5 and 0.2"):
        BatchStyles(low=0.5, high=0.2)
    model = nn.Linear(6, 3)
    recipe = wp.Recipe(BatchStyles()).attach(model, wp.Classify())
    with pytest.raises(ValueError, match=r"BatchStyles needs images .* in 'x', got torch.float32 of shape \(4, 6\)"):
        recipe.step({"x": torch.randn(4, 6), "y": torch.arange(4) % 3}, torch.optim.SGD(model.parameters()))
    recipe.detach()
    recipe = wp.Recipe(BatchStyles(keys=("x1",))).attach(model, wp.Classify())
    with pytest.raises(ValueError, match=r"BatchStyles needs images .* in 'x1', got NoneType"):
        recipe.step({"x": torch.randn(4, 6), "y": torch.arange(4) % 3}, torch.optim.SGD(model.parameters()))
