"""L1 and L2: values, derivatives, and what they act on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.weights.norm_penalties import L1, L2, l1_norm, squared_l2_norm


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def images() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, 1, 8, 8, generator=g, dtype=torch.float64), "y": torch.arange(12) % 3}


@pytest.mark.parametrize(("norm", "power"), [(l1_norm, 1), (squared_l2_norm, 2)])
def test_values_and_derivatives(norm: object, power: int) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2), (4,), (2, 2, 2))]
    expected = sum(abs(float(v)) ** power for w in weights for v in w.detach().flatten())
    assert norm(weights).item() == pytest.approx(expected, rel=1e-13)
    assert torch.autograd.gradcheck(lambda *w: norm(w), weights)
    assert torch.autograd.gradgradcheck(lambda *w: norm(w), weights)


def test_zero_has_subgradient_zero_and_half_precision_does_not_overflow() -> None:
    zero = torch.zeros(3, requires_grad=True)
    for norm in (l1_norm, squared_l2_norm):
        assert torch.equal(torch.autograd.grad(norm([zero]), zero)[0], torch.zeros(3))
        half = torch.full((70_000,), 2.0, dtype=torch.float16, requires_grad=True)
        value = norm([half, torch.ones(2)])
        assert value.item() == pytest.approx(140_002 if norm is l1_norm else 280_002)
        assert torch.autograd.grad(value, half)[0].dtype == torch.float16


@pytest.mark.parametrize(("method", "slope"), [(L1, torch.sign), (L2, lambda w: 2 * w)])
def test_adds_its_gradient_to_weights_alone(method: type[wp.Method], slope: object) -> None:
    model, batch = conv_net(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    grads = []
    for recipe in (wp.Recipe(), wp.Recipe(method(strength=0.3))):
        recipe.attach(model, wp.Classify())
        recipe.step([{k: v[:6] for k, v in batch.items()}, {k: v[6:] for k, v in batch.items()}], optimizer)
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
        recipe.detach()
    for n, p in model.named_parameters():
        added = 0.3 * slope(p.detach()) if p.ndim >= 2 else torch.zeros_like(p)
        assert torch.allclose(grads[1][n] - grads[0][n], added, rtol=0, atol=1e-14), n


def test_l2_is_weight_decay_of_twice_the_strength_under_sgd() -> None:
    def weights(strength: float, weight_decay: float) -> Tensor:
        model = conv_net()
        groups = wp.no_decay_groups(model, weight_decay)
        recipe = wp.Recipe(L2(strength=strength)).attach(model, wp.Classify())
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        for _ in range(4):
            recipe.step(images(), optimizer)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.allclose(weights(0.05, 0.0), weights(0.0, 0.1), rtol=0, atol=1e-13)


def test_l1_leaves_useless_inputs_without_weight() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 10)
    y = (x[:, 0] + x[:, 1] > 0).long()

    def useless(strength: float) -> float:
        torch.manual_seed(1)
        model = nn.Linear(10, 2)
        recipe = wp.Recipe(L1(strength=strength)).attach(model, wp.Classify())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(150):
            recipe.step({"x": x, "y": y}, optimizer)
        return model.weight[:, 2:].abs().max().item()

    assert useless(0.05) < 0.02 < useless(0.0)


@pytest.mark.parametrize("method", [L1, L2])
def test_trains_a_transformer_and_respects_patterns(method: type[wp.Method]) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    model = nn.Sequential(nn.Embedding(7, 8), nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(40, 3))
    batch = {"x": torch.randint(7, (12, 5)), "y": torch.arange(12) % 3}
    recipe = wp.Recipe(method(strength=1e-3, no_decay=("0.*",))).attach(model, wp.Classify())
    terms = [recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.05)) for _ in range(5)]
    assert terms[-1]["total"] < terms[0]["total"]
    with pytest.raises(wp.RecipeError, match=r"no parameter is called 'embed\.\*'"):
        wp.Recipe(method(no_decay=("embed.*",))).attach(model, wp.Classify())
