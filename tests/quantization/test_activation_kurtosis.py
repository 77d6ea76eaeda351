"""Activation kurtosis regularization."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.quantization.activation_kurtosis import (
    ActivationKurtosis,
    LearnedClip,
    kurtosis,
    outlier_channel_ratio,
    quantize_inputs,
)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_value_by_loops_and_gradient() -> None:
    x = draw(4, 9)
    for row, found in zip(x.tolist(), kurtosis(x).tolist(), strict=True):
        mean = sum(row) / 9
        square = sum((a - mean) ** 2 for a in row) / 9
        assert found == pytest.approx(sum((a - mean) ** 4 for a in row) / 9 / square**2, rel=1e-10)
    assert torch.autograd.gradcheck(kurtosis, (x.requires_grad_(),))


def test_closed_forms() -> None:
    """A spike among d: d - 2 + 1 / (d - 1); Gaussian entries: 3 (d - 1) / (d + 1) on average; uniform: 1.8."""
    d = 64
    spike = torch.zeros(d, dtype=torch.float64).index_fill(0, torch.tensor([5]), 7.0)
    assert kurtosis(spike).item() == pytest.approx(d - 2 + 1 / (d - 1), rel=1e-9)
    values = kurtosis(draw(40_000, d))
    error = values.std().item() / 40_000**0.5
    assert abs(values.mean().item() - 3 * (d - 1) / (d + 1)) < 4 * error
    assert kurtosis(torch.linspace(-1, 1, 100_001, dtype=torch.float64)).item() == pytest.approx(1.8, rel=1e-4)
    assert kurtosis(torch.tensor([1.0, -1.0, 1.0, -1.0])).item() == pytest.approx(1.0)
    assert kurtosis(torch.ones(5)).item() == 0


def test_outlier_channels() -> None:
    x = torch.ones(10, 8)
    assert outlier_channel_ratio(x) == 1
    x[:, 3] = -20
    assert outlier_channel_ratio(x) == 20
    assert outlier_channel_ratio(x.view(2, 5, 8)) == 20
    assert outlier_channel_ratio(x.view(10, 8, 1, 1).expand(10, 8, 2, 3)) == 20


def test_penalty_sums_layers_and_averages_tokens_and_places() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    model.append(nn.Linear(64, 3))
    x = torch.randn(6, 1, 8, 8)
    recipe = wp.Recipe(ActivationKurtosis(strength=1.0)).attach(model, wp.Classify(classes=3))
    terms = recipe.step({"x": x, "y": torch.arange(6) % 3}, torch.optim.SGD(model.parameters(), lr=0.0))
    first = model[0](x)
    wanted = kurtosis(first, 1).mean() + kurtosis(model[:4](x), 1).mean()
    torch.testing.assert_close(terms["ActivationKurtosis"], wanted.detach())


@pytest.mark.parametrize("layers", [(), ("0.linear1",)])
def test_transformer_loses_its_outlier_channel(layers: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    with torch.no_grad():
        block.linear1.bias[3] += 10
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(80, 3))
    recipe = wp.Recipe(ActivationKurtosis(strength=0.1, layers=layers)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch = {"x": torch.randn(12, 5, 16), "y": torch.arange(12) % 3}
    terms = [recipe.step(batch, optimizer) for _ in range(40)]
    assert terms[-1]["ActivationKurtosis"] < 0.5 * terms[0]["ActivationKurtosis"]
    assert terms[-1]["task"] < terms[0]["task"]


def test_layers_that_are_never_called_are_named() -> None:
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(80, 3))
    recipe = wp.Recipe(ActivationKurtosis(layers=("0.self_attn.out_proj",))).attach(model, wp.Classify(classes=3))
    with pytest.raises(wp.RecipeError, match=r"saw no output of 0\.self_attn\.out_proj"):
        recipe.step({"x": torch.randn(2, 5, 16), "y": torch.arange(2)}, torch.optim.SGD(model.parameters(), lr=0.1))


def test_quantised_inputs_are_on_the_learned_grid_and_train() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    assert quantize_inputs(model, bits=3, low=1.0, high=2.5) is model
    seen: list[Tensor] = []
    model[4].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    model(x)
    grid = torch.linspace(-1, 2.5, 8)
    assert (seen[0].unsqueeze(-1) - grid).abs().amin(-1).max() < 1e-6
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    recipe = wp.Recipe().attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = [recipe.step({"x": x, "y": y}, optimizer)["task"] for _ in range(30)]
    assert losses[-1] < losses[0]
    ends = [n for n in start if "input_quantizer" in n]
    assert len(ends) == 4
    assert all(not torch.equal(start[n], p) for n, p in model.named_parameters() if n in ends)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="ends above 0, got 4, -1 and 4"):
        LearnedClip(low=-1.0)
    with pytest.raises(wp.RecipeError, match="the model lacks 'a linear layer or convolution'"):
        quantize_inputs(nn.Sequential(nn.ReLU()))
    with pytest.raises(wp.RecipeError, match="the model lacks '1'"):
        quantize_inputs(nn.Sequential(nn.Linear(2, 2)), layers=("1",))
    with pytest.raises(wp.RecipeError, match="'0' has quantised inputs already"):
        quantize_inputs(quantize_inputs(nn.Sequential(nn.Linear(2, 2))))
