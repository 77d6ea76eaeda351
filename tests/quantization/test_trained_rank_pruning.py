"""Trained rank pruning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.quantization.trained_rank_pruning import (
    FactoredLinear,
    TrainedRankPruning,
    energy_rank,
    factorize,
    folded,
    truncate_spectrum,
    unfolded,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("energy", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_truncation_by_loops(energy: float, shape: tuple[int, int]) -> None:
    w = draw(*shape)
    u, s, vh = np.linalg.svd(w.numpy(), full_matrices=False)
    k = next(k for k in range(1, 7) if sum(s[k:] ** 2) <= energy * sum(s**2))
    low, nuclear = truncate_spectrum(w, energy)
    np.testing.assert_allclose(low.numpy(), (u[:, :k] * s[:k]) @ vh[:k], atol=1e-13)
    np.testing.assert_allclose(nuclear.numpy(), u[:, :k] @ vh[:k], atol=1e-13)
    assert energy_rank(w, energy) == k == torch.linalg.matrix_rank(low)


def test_nothing_to_drop_changes_not_a_bit() -> None:
    w = draw(5, 7)
    assert torch.equal(truncate_spectrum(w, 0.0)[0], w)


def test_the_direction_is_a_subgradient_of_the_nuclear_norm() -> None:
    """||X|| >= ||W_k|| + <U_k V_k', X - W_k> for every X, with equality at W_k."""
    low, direction = truncate_spectrum(draw(5, 7), 0.3)
    norm = torch.linalg.matrix_norm(low, "nuc")
    assert (direction * low).sum().item() == pytest.approx(norm.item(), rel=1e-12)
    for seed in range(20):
        x = low + draw(5, 7, seed=seed)
        assert torch.linalg.matrix_norm(x, "nuc") >= norm + (direction * (x - low)).sum() - 1e-12


@pytest.mark.parametrize("mode", ["channel", "spatial"])
def test_folding_is_undone(mode: Any) -> None:
    w = draw(5, 4, 3, 2)
    matrix = unfolded(w, mode)
    assert matrix.shape == ((5, 24) if mode == "channel" else (12, 10))
    assert torch.equal(folded(matrix, w.shape, mode), w)


@pytest.mark.parametrize("mode", ["channel", "spatial"])
@pytest.mark.parametrize("settings", [{"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}, {"padding": "same"}])
def test_factors_compute_what_the_low_rank_kernel_does(mode: Any, settings: dict[str, Any]) -> None:
    conv = nn.Conv2d(6, 8, 3, padding_mode="zeros", dtype=torch.float64, **settings)
    with torch.no_grad():
        conv.weight.copy_(folded(truncate_spectrum(unfolded(conv.weight, mode), 0.7)[0], conv.weight.shape, mode))
    x = draw(2, 6, 9, 9)
    two = factorize(nn.Sequential(conv), 1e-9, mode)[0]  # type: ignore[index]
    assert isinstance(two, nn.Sequential)
    torch.testing.assert_close(two(x), conv(x), rtol=0, atol=1e-12)
    assert sum(p.numel() for p in two.parameters()) < sum(p.numel() for p in conv.parameters())


def test_what_saves_nothing_stays() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    layers = list(model)
    factorize(model, 0.0)
    assert list(model) == layers
    with pytest.raises(wp.RecipeError, match="the model lacks '1'"):
        factorize(model, layers=("1",))


def conv() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3)
    ), torch.randn(12, 1, 8, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(12, 5, 8)


@pytest.mark.parametrize("build", [conv, transformer])
@pytest.mark.parametrize("mode", ["channel", "spatial"])
def test_trains_to_low_rank_and_factorises(build: Any, mode: Any) -> None:
    torch.manual_seed(0)
    model, x = build()
    method = TrainedRankPruning(energy=0.2, every=5, nuclear=1e-2, mode=mode)
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batch = {"x": x, "y": torch.arange(12) % 3}
    losses = [recipe.step(batch, optimizer)["task"] for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    recipe.detach().eval()
    before = sum(p.numel() for p in model.parameters())
    out = model(x)
    factorize(model, 0.05, mode)
    assert sum(p.numel() for p in model.parameters()) < before
    assert (model(x) - out).norm() < 0.5 * out.norm()
    with torch.no_grad():  # the fused evaluation of transformers reads the weights of its layers
        torch.testing.assert_close(model(x), model.train()(x) if build is transformer else model(x), rtol=0, atol=1e-5)


def test_one_update_by_the_formula() -> None:
    model = nn.Linear(6, 5, dtype=torch.float64)
    w, x = model.weight.detach().clone(), draw(12, 6)
    recipe = wp.Recipe(TrainedRankPruning(energy=0.3, nuclear=0.01)).attach(model, wp.Classify(classes=5))
    recipe.step({"x": x, "y": torch.arange(12) % 5}, torch.optim.SGD([model.weight], lr=0.1))
    low, direction = truncate_spectrum(w, 0.3)
    low.requires_grad_()
    loss = nn.functional.cross_entropy(nn.functional.linear(x, low, model.bias.detach()), torch.arange(12) % 5)
    [g] = torch.autograd.grad(loss, [low])
    torch.testing.assert_close(model.weight.detach(), low.detach() - 0.1 * (g + 0.01 * direction), rtol=0, atol=1e-14)


def test_factored_linear_shows_the_weight_it_stands_for() -> None:
    two = FactoredLinear(nn.Linear(6, 2, bias=False), nn.Linear(2, 5))
    x = torch.randn(3, 6)
    torch.testing.assert_close(nn.functional.linear(x, two.weight, two.bias), two(x))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="'channel' or 'spatial', got 'row'"):
        TrainedRankPruning(mode="row")  # type: ignore[arg-type]
    with pytest.raises(wp.RecipeError, match="the model lacks 'a linear layer or 2D convolution'"):
        wp.Recipe(TrainedRankPruning()).attach(nn.Conv1d(2, 2, 3), wp.Classify(classes=2))
