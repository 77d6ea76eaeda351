"""Spectral regularization and the distances from initial weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.weights._matrices import leading_vectors, places, singular_values, start, unfold
from wellposed.weights.spectral_regularization import (
    InitialDistance,
    Mode,
    SpectralRegularization,
    l2_init,
    spectral_penalty,
    wasserstein_init,
)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def conv() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def transformer() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))


def test_penalty_by_loops() -> None:
    sigmas, biases, gains = draw(3).abs(), [draw(2), draw(4)], [draw(5)]
    for k in (1, 2, 3):
        total = sum((float(s) ** k - 1) ** 2 for s in sigmas)
        for b in biases:
            total += sum(float(x) ** 2 for x in b) ** k
        total += sum((float(g) ** k - 1) ** 2 for g in gains[0])
        assert spectral_penalty(sigmas, biases, gains, k).item() == pytest.approx(total, rel=1e-12)


def test_distances_by_loops_and_gradients() -> None:
    now, before = draw(3, 2), draw(7)[:6].flip(0).reshape(3, 2)
    ordered = before.flatten().sort().values
    expected = sum((a - b) ** 2 for a, b in zip(sorted(now.flatten().tolist()), ordered.tolist(), strict=True))
    assert wasserstein_init([now], [ordered]).item() == pytest.approx(expected, rel=1e-12)
    each = sum((float(a) - float(b)) ** 2 for a, b in zip(now.flatten(), before.flatten(), strict=True))
    assert l2_init([now], [before]).item() == pytest.approx(each, rel=1e-12)
    assert wasserstein_init([now.flip(0)], [now.flatten().sort().values]) == 0  # a permutation costs nothing
    x = now.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: wasserstein_init([w], [ordered]), x)
    assert torch.autograd.gradcheck(lambda w: l2_init([w], [before]), x)
    parts = tuple(p.clone().requires_grad_() for p in draw(7).tensor_split((2, 5)))
    assert torch.autograd.gradcheck(lambda s, b, g: spectral_penalty(s, [b], [g]), parts)


def test_power_iteration_finds_the_largest_singular_value_and_its_gradient() -> None:
    w = torch.stack([draw(6, 9), draw(6, 9).flip(0) * 2]).requires_grad_()
    u, v = leading_vectors(w.detach(), start(w.detach()), 500)
    sigma = singular_values(w, u, v)
    exact = torch.linalg.svdvals(w)[:, 0]
    torch.testing.assert_close(sigma, exact, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(s.sum(), w)[0] for s in (sigma, exact))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_zero_matrices_have_no_direction_and_may_recover() -> None:
    u, v = leading_vectors(torch.zeros(1, 3, 4), torch.eye(3)[:1], 2)
    assert torch.equal(u, torch.eye(3)[:1])
    assert singular_values(torch.zeros(1, 3, 4), u, v) == 0


def test_matrices_of_every_layer() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Conv1d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, kdim=5), nn.Linear(4, 3),
    )  # fmt: skip
    model[5].weight.requires_grad_(False)
    found = places(SpectralRegularization(), model)
    shapes = [tuple(unfold(p.read(model).detach(), p).shape) for p in found]
    square = (1, 4, 4)
    assert shapes == [(1, 4, 3), (1, 6, 6), (1, 6, 18), (3, 4, 4), square, square, (1, 4, 5), square, square]
    with pytest.raises(wp.RecipeError, match="no trainable linear layer"):
        wp.Recipe(SpectralRegularization()).attach(nn.BatchNorm1d(3), wp.Classify(classes=3))


@pytest.mark.parametrize("build", [conv, transformer])
def test_method_penalises_exact_singular_values(build: Callable[[], nn.Sequential]) -> None:
    model = build()
    x = torch.randn(6, 1, 8, 8) if build is conv else torch.randn(6, 5, 8)
    method = SpectralRegularization(power_steps=200, strength=1.0)
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=3))
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    blocks = [w.flatten(1) for w in weights]
    if build is transformer:
        blocks += model.get_parameter("0.self_attn.in_proj_weight").chunk(3)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    expected = spectral_penalty(
        torch.stack([torch.linalg.matrix_norm(b, 2) for b in blocks]), biases, [n.weight for n in norms]
    )
    terms = recipe.step({"x": x, "y": torch.arange(6) % 3}, torch.optim.SGD(model.parameters(), lr=0.0))
    torch.testing.assert_close(terms["SpectralRegularization"], expected.detach(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("build", [conv, transformer])
def test_pulls_layers_to_one(build: Callable[[], nn.Sequential]) -> None:
    model = build()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    x = torch.randn(6, 1, 8, 8) if build is conv else torch.randn(6, 5, 8)
    recipe = wp.Recipe(SpectralRegularization(strength=1.0)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        recipe.step({"x": x, "y": torch.arange(6) % 3}, optimizer)
    top = [
        torch.linalg.matrix_norm(m.weight.detach().flatten(1), 2) for m in model if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    assert all(0.8 < float(t) < 1.3 for t in top)


def test_tied_frozen_and_half_precision_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).to(torch.bfloat16))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    method = SpectralRegularization()
    wp.Recipe(method).attach(model, wp.Classify(classes=4))
    assert [p.layer for p in method.places] == ["0", "2"]
    assert method.bias_names == ("1.bias", "2.bias")
    assert method.u1.dtype == torch.float32


@pytest.mark.parametrize("mode", ["wasserstein", "l2"])
def test_initial_distance_starts_at_zero_and_holds_weights(mode: Mode) -> None:
    batch = {"x": torch.randn(6, 1, 8, 8), "y": torch.arange(6) % 3}
    moved = {}
    for strength in (0.0, 1.0):
        model = conv()
        kept = [p.detach().clone() for p in model.parameters()]
        recipe = wp.Recipe(InitialDistance(mode=mode, strength=strength)).attach(model, wp.Classify(classes=3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        terms = [recipe.step(batch, optimizer) for _ in range(30)]
        if strength:
            assert terms[0]["InitialDistance"] == 0
            assert terms[-1]["InitialDistance"] > 0
        moved[strength] = float(l2_init([p.detach() for p in model.parameters()], kept))
    assert moved[1.0] < moved[0.0]


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="mode must be 'wasserstein' or 'l2', got 'W2'"):
        InitialDistance(mode="W2")  # type: ignore[arg-type]
