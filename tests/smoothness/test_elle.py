"""ELLE against closed forms on quadratics, and its rule against a list of all errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.smoothness.elle import ELLE, linearity_error


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(*shape: int) -> Tensor:
    return torch.rand(shape, generator=seeded(3), dtype=torch.float64)


def symmetric(size: int) -> Tensor:
    a = torch.randn(size, size, generator=seeded(4), dtype=torch.float64)
    return a + a.T


def drawn(x: Tensor, radius: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The random points and shares that the function takes, in their order."""
    g = seeded(seed)
    a, b = (x + radius * (2 * torch.rand(x.shape, generator=g, dtype=x.dtype) - 1) for _ in range(2))
    return a, b, torch.rand(len(x), generator=g, dtype=x.dtype)


def test_an_affine_loss_has_no_error() -> None:
    w = torch.randn(3, 4, generator=seeded(), dtype=torch.float64)
    error = linearity_error(lambda x: (x * w).flatten(1).sum(1) + 2, rows(9, 3, 4), 0.5, seeded())
    assert error.shape == (9,)
    assert error.max() < 1e-28


def test_by_explicit_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = rows(7, 5), torch.arange(7) % 3
    found = linearity_error(lambda z: F.cross_entropy(model(z), y, reduction="none"), x, 0.3, seeded()).detach()
    a, b, s = drawn(x, 0.3)
    for i in range(7):
        at = [F.cross_entropy(model(z), y[i]).detach() for z in (a[i], b[i], (1 - s[i]) * a[i] + s[i] * b[i])]
        assert float(found[i]) == pytest.approx(float((at[2] - (1 - s[i]) * at[0] - s[i] * at[1]) ** 2), rel=1e-8)


def test_quadratic_identity() -> None:
    """(s (1 - s) (a - b)' A (a - b))^2, whatever the linear part."""
    matrix, x = symmetric(5), rows(20, 5)
    slope = torch.randn(5, generator=seeded(5), dtype=torch.float64)
    found = linearity_error(lambda z: ((z @ matrix) * z).sum(1) + z @ slope, x, 0.4, seeded())
    a, b, s = drawn(x, 0.4)
    expected = (s * (1 - s) * (((a - b) @ matrix) * (a - b)).sum(1)).square()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)


def test_mean_over_the_box_in_closed_form() -> None:
    """radius^4 / 30 (4/9 (tr(A)^2 + 2 ||A||^2) - 4/15 sum A_ii^2) for a, b uniform."""
    matrix, radius, count = symmetric(4), 0.7, 200_000
    error = linearity_error(lambda z: ((z @ matrix) * z).sum(1), torch.zeros(count, 4).double(), radius, seeded())
    diagonal = float(matrix.diagonal().square().sum())
    expected = (
        radius**4 / 30 * (4 / 9 * (float(matrix.trace()) ** 2 + 2 * float(matrix.square().sum())) - 4 / 15 * diagonal)
    )
    assert abs(float(error.mean()) - expected) < 4 * float(error.std()) / count**0.5


def test_gradient() -> None:
    x, w = rows(4, 3), torch.randn(3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: linearity_error(lambda z: (z @ w).exp(), x, 0.5, seeded()), (w,))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def batch() -> dict[str, Tensor]:
    return {"x": rows(12, 6), "y": torch.arange(12) % 3}


@pytest.mark.parametrize("attack", ["fgsm", "none", "n-fgsm"])
def test_trains_on_the_attacked_input_around_the_clean_one(attack: str) -> None:
    net, data = model(), batch()
    recipe = wp.Recipe(ELLE(radius=0.2, strength=50.0, attack=attack, box=(0.0, 1.0))).attach(net, wp.Classify())  # type: ignore[arg-type]
    terms = recipe.step(data, torch.optim.SGD(net.parameters(), lr=0.0))
    leaf = data["x"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(net(leaf), data["y"]), leaf)
    moved = (data["x"] + 0.2 * slope.sign()).clamp(0, 1) if attack == "fgsm" else data["x"]
    task = F.cross_entropy(net(moved), data["y"]).item()
    if attack == "n-fgsm":
        assert float(terms["task"]) > task
    else:
        assert float(terms["task"]) == pytest.approx(task, rel=1e-12)
    assert 0 < float(terms["ELLE"]) < 50


def test_adaptive_rule_is_that_of_the_whole_history() -> None:
    method = ELLE(adaptive=True, sensitivity=1.0, decay=0.9)
    wp.Recipe(method).attach(model(), wp.Classify())
    errors = np.random.default_rng(0).lognormal(size=40)
    level, spikes, past = 0.0, 0, list[float]()
    for error in errors:
        if len(past) > 2 and error > np.mean(past) + 1.0 * np.std(past):
            level, spikes = 1.0, spikes + 1
        else:
            level *= 0.9
        past.append(error)
        method._remember(torch.tensor(error, dtype=torch.float32))
        assert float(method.level[1]) == pytest.approx(level, rel=1e-5)
    assert spikes > 3
    assert float(method.history[1]) == pytest.approx(np.mean(errors), rel=1e-5)


def test_adaptive_takes_effect_in_the_next_update() -> None:
    net, data = model(), batch()
    method = ELLE(radius=0.3, adaptive=True, sensitivity=0.0, strength=10.0)
    recipe = wp.Recipe(method).attach(net, wp.Classify())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    terms = [recipe.step(data, optimizer) for _ in range(3)]
    assert all(float(t["ELLE"]) == 0 for t in terms)
    method.history[1] = 0.0  # as if all errors had been tiny
    method.history[2] = 0.0
    assert float(recipe.step(data, optimizer)["ELLE"]) == 0
    assert float(recipe.step(data, optimizer)["ELLE"]) > 0


def test_conv_net_with_batch_norm_and_a_transformer() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    former = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
    for net, shape in ((conv, (1, 8, 8)), (former, (5, 8))):
        x = torch.randn(12, *shape)
        recipe = wp.Recipe(ELLE(radius=0.05, strength=10.0, adaptive=net is former)).attach(net, wp.Classify())
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        losses = [float(recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)["task"]) for _ in range(30)]
        assert losses[-1] < 0.5 * losses[0]
    assert int(conv[1].num_batches_tracked) == 30  # type: ignore[arg-type]


def test_bad_settings_and_inputs() -> None:
    with pytest.raises(ValueError, match="attack must be 'fgsm', 'n-fgsm' or 'none', got 'pgd'"):
        ELLE(attack="pgd")  # type: ignore[arg-type]
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    recipe = wp.Recipe(ELLE()).attach(net, wp.Classify())
    with pytest.raises(TypeError, match=r"ELLE moves the input a little, .* got a tensor of torch.int64"):
        recipe.step({"x": torch.randint(5, (6, 3)), "y": torch.arange(6) % 3}, torch.optim.SGD(net.parameters()))
