"""Proximal matching: the loss, its stages, and that it finds modes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.inverse.proximal_matching import ProximalMatching, proximal_matching


def images(rows: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    both = torch.randn(2, rows, 3, 2, generator=g, dtype=torch.float64)
    return both[0], both[1]


def test_value_by_explicit_loops() -> None:
    a, b = images()
    for row, found in enumerate(proximal_matching(a, b, 0.7)):
        mean = sum((float(p) - float(q)) ** 2 for p, q in zip(a[row].flatten(), b[row].flatten(), strict=True)) / 6
        assert float(found) == pytest.approx(1 - math.exp(-mean / 0.49), rel=1e-12)


def test_shapes_do_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"differ in shape, \(4, 1\) and \(4,\)"):
        proximal_matching(torch.rand(4, 1), torch.rand(4), 1.0)


def test_gradient() -> None:
    a, b = images()
    assert torch.autograd.gradcheck(lambda p: proximal_matching(p, b, 0.9), a.requires_grad_())


def test_a_wide_one_is_the_squared_error() -> None:
    a, b = images()
    wide = 1e6**2 * proximal_matching(a, b, 1e6)
    torch.testing.assert_close(wide, (a - b).square().flatten(1).mean(1), rtol=1e-10, atol=0)


def test_a_narrow_one_is_least_at_the_mode() -> None:
    """Values 0 (3 of 6), 1 (2 of 6) and 3: the mean is 5/6, the median 1/2, the mode 0."""
    y = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0], [3.0]], dtype=torch.float64)
    guesses = torch.linspace(-1, 4, 501, dtype=torch.float64)

    def best(gamma: float) -> float:
        losses = [proximal_matching(guess.expand(6, 1), y, gamma).mean() for guess in guesses]
        return float(guesses[torch.stack(losses).argmin()])

    assert best(0.1) == pytest.approx(0.0, abs=0.006)
    assert best(100.0) == pytest.approx(5 / 6, abs=0.006)


def test_stages_halve_the_width_after_the_first_part() -> None:
    method = ProximalMatching(gamma=0.1, stages=3, pretrain=0.4)
    found = [method.width(p) for p in (0.0, 0.39, 0.4, 0.59, 0.61, 0.79, 0.81, 1.0)]
    assert found[:2] == [None, None]
    assert found[2:] == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1, 0.1])
    assert ProximalMatching(pretrain=1.0).width(1.0) is None


def test_the_tasks_loss_comes_first() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    method = ProximalMatching(gamma=0.5, stages=1, pretrain=0.5)
    recipe = wp.Recipe(method).attach(model, wp.Regress("absolute"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = {"x": torch.randn(4, 2), "y": torch.randn(4, 2)}
    off = model(batch["x"]) - batch["y"]
    early, late = (recipe.step(batch, optimizer, progress=p)["task"] for p in (0.2, 0.7))
    torch.testing.assert_close(early, off.abs().mean())
    torch.testing.assert_close(late, proximal_matching(model(batch["x"]), batch["y"], 0.5).mean())
    with pytest.raises(ValueError, match="needs to know how far training is"):
        recipe.step(batch, optimizer)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains_networks_of_all_kinds(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "conv":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )
        clean = (torch.randn(32, 1, 6, 6) > 1).float()
    else:
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8))
        clean = (torch.randn(32, 5, 8) > 1).float()
    noisy = clean + 0.2 * torch.randn_like(clean)
    steps = 80
    recipe = wp.Recipe(ProximalMatching(gamma=0.2, stages=2)).attach(model, wp.Regress("absolute"), steps=steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = [recipe.step({"x": noisy, "y": clean}, optimizer)["task"].item() for _ in range(steps)]
    assert losses[steps // 2 - 1] < losses[0]
    assert losses[-1] < losses[3 * steps // 4], "the last stage learned"
