"""Loss landscapes: norms by loops, the invariance the normalisation is for, and planes that are known."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wellposed.core.card import card
from wellposed.theory.loss_landscape import (
    convexity_map,
    filter_normalized_direction,
    loss_surface,
    trajectory_plane,
)

AT = torch.linspace(-1, 1, 7)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3), nn.Flatten(), nn.Linear(108, 3)
    ).double()  # fmt: skip


def test_each_filter_has_the_norm_of_the_models() -> None:
    assert card(filter_normalized_direction).formula
    model = conv_net()
    d = filter_normalized_direction(model, generator())
    weights = {n: p.detach() for n, p in model.named_parameters()}
    for name, dim in (("0.weight", 0), ("3.weight", 1), ("5.weight", 0)):
        for i in range(weights[name].shape[dim]):
            ours, theirs = d[name].select(dim, i), weights[name].select(dim, i)
            assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-12)
            assert abs(float(F.cosine_similarity(ours.flatten(), theirs.flatten(), 0))) < 0.999
    assert all(not d[name].any() for name, p in weights.items() if p.ndim < 2)
    layers = filter_normalized_direction(model, generator(), by="layer")
    assert float(layers["0.weight"].norm()) == pytest.approx(float(weights["0.weight"].norm()), rel=1e-12)
    raw = filter_normalized_direction(model, generator(), by="none")
    assert torch.allclose(
        raw["0.weight"][0] / raw["0.weight"][0].norm() * weights["0.weight"][0].norm(), d["0.weight"][0]
    )


def test_zero_filters_half_precision_and_frozen_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).to(torch.bfloat16), nn.Linear(2, 2).requires_grad_(False))
    model.state_dict()["0.weight"][1] = 0
    d = filter_normalized_direction(model, generator())
    assert set(d) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert not d["0.weight"][1].any()
    assert d["1.weight"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no trainable parameters"):
        filter_normalized_direction(nn.ReLU())
    with pytest.raises(ValueError, match="by must be 'filter'"):
        filter_normalized_direction(model, by="row")  # type: ignore[arg-type]


def test_rescaled_layers_have_the_same_curve() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)).double()
    other = copy.deepcopy(net)
    weights = other.state_dict()
    weights["0.weight"] *= 10
    weights["2.weight"] /= 10
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3

    def curve(model: nn.Module, by: str) -> Tensor:
        d = filter_normalized_direction(model, generator(), by)  # type: ignore[arg-type]
        return loss_surface(model, lambda: F.cross_entropy(model(x), y), d, rows=AT)

    for by in ("filter", "layer"):
        assert torch.allclose(curve(net, by), curve(other, by), rtol=1e-12)
    assert (curve(net, "none") - curve(other, "none")).abs().max() > 1


def test_rescaled_filters_before_normalisation_have_the_same_curve() -> None:
    net = conv_net()
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.eps, norm.momentum = 1e-30, 1.0
    other = copy.deepcopy(net)
    factors = torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64)
    weights = other.state_dict()
    weights["0.weight"] *= factors[:, None, None, None]
    weights["0.bias"] *= factors
    x, y = torch.randn(20, 1, 6, 6, dtype=torch.float64, generator=generator()), torch.arange(20) % 3

    def curve(model: nn.Module) -> Tensor:
        model(x)  # running statistics of each net's own
        d = filter_normalized_direction(model, generator(1))
        return loss_surface(model, lambda: F.cross_entropy(model(x), y), d, rows=AT)

    assert torch.allclose(curve(net), curve(other), rtol=1e-9)


def test_surface_by_hand_and_everything_restored() -> None:
    model = conv_net().train()
    model[0].eval()
    x, y = torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.arange(4) % 3
    before = copy.deepcopy(model.state_dict())
    one, two = (filter_normalized_direction(model, generator(i)) for i in (0, 1))
    columns = torch.tensor([-0.5, 0.25])
    found = loss_surface(model, lambda: F.cross_entropy(model(x), y), one, two, AT, columns)
    assert found.shape == (7, 2)
    assert model.training
    assert not model[0].training
    assert all(torch.equal(a, before[n]) for n, a in model.state_dict().items())
    by_hand = copy.deepcopy(model).eval()
    for name, p in by_hand.named_parameters():
        p.data += AT[5].item() * one[name] + 0.25 * two[name]
    assert float(found[5, 1]) == pytest.approx(F.cross_entropy(by_hand(x), y).item(), rel=1e-12)
    with pytest.raises(RuntimeError, match="stop"):
        loss_surface(model, lambda: (_ for _ in ()).throw(RuntimeError("stop")), one)
    assert all(torch.equal(a, before[n]) for n, a in model.state_dict().items())
    with pytest.raises(ValueError, match="fits no trainable parameter"):
        loss_surface(model, lambda: x.sum(), {"0.weight": torch.zeros(2)})


def test_convexity_of_a_saddle() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    factors = torch.tensor([4.0, 1.0, -1.0], dtype=torch.float64)
    d = filter_normalized_direction(model, generator())
    found = convexity_map(model, lambda: (factors * model.weight.square()).sum(), d, rows=AT)
    assert torch.allclose(found, torch.full((7,), 0.25, dtype=torch.float64))


def test_transformer() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 5, 8)
    d = filter_normalized_direction(model, generator())
    at = torch.tensor([-0.1, 0.0, 0.1])
    assert loss_surface(model, lambda: model(x).square().mean(), d, rows=at).isfinite().all()
    ratio = convexity_map(model, lambda: model(x)[..., 0].square().mean(), d, rows=at[:1], iterations=5)
    assert 0 <= ratio.item() < 10


def test_plane_of_a_known_trajectory() -> None:
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(12, 2, dtype=torch.float64)).Q.T
    steps = [(8.0, 1.0), (4.0, -2.0), (2.0, 2.0), (0.0, 0.0)]
    states = [{"a": (1 + p * u + q * v)[:8].view(2, 4), "b": (1 + p * u + q * v)[8:]} for p, q in steps]
    plane = trajectory_plane(states)
    assert float(plane.explained.sum()) == pytest.approx(1)
    for state, (p, q) in zip(states, plane.coordinates.tolist(), strict=True):
        for name in "ab":
            assert torch.allclose(states[-1][name] + p * plane.first[name] + q * plane.second[name], state[name])
    assert float(sum((plane.first[n] * plane.second[n]).sum() for n in "ab")) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="at least 3"):
        trajectory_plane(states[:2])
    with pytest.raises(ValueError, match="lie on a line"):
        trajectory_plane([{"a": torch.tensor([float(i), 0.0])} for i in range(4)])
