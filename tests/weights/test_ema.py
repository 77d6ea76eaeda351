"""EMA against torch's AveragedModel, warm-up, shipping and resuming."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import wellposed as wp
from wellposed.weights.ema import EMA, ema_decay


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )


def images() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, 1, 8, 8, generator=g), "y": torch.arange(12) % 3}


def test_equals_torchs_average_and_ships_it_with_the_models_statistics() -> None:
    model, batch = conv_net(), images()
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    recipe = wp.Recipe(EMA(decay=0.9)).attach(model, wp.Classify())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        recipe.step(batch, optimizer)
        reference.update_parameters(model)
    trained = copy.deepcopy(model.state_dict())
    with recipe.evaluating() as inside:
        for (n, a), b in zip(inside.named_parameters(), reference.module.parameters(), strict=True):
            assert torch.equal(a, b), n
        for n, b in inside.named_buffers():
            assert torch.equal(b, trained[n]), n
        assert not torch.equal(inside[0].weight, trained["0.weight"])
    assert all(torch.equal(v, trained[k]) for k, v in model.state_dict().items())  # training goes on where it was
    recipe.finish()
    for a, b in zip(model.parameters(), reference.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_does_not_see_it() -> None:
    ends = []
    for methods in ([], [EMA(warm_up=True)]):
        model = conv_net()
        recipe = wp.Recipe(*methods).attach(model, wp.Classify())
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            recipe.step(images(), optimizer)
        ends.append(model.state_dict())
    assert all(torch.equal(a, ends[1][k]) for k, a in ends[0].items())


def test_warm_up_written_out() -> None:
    model = nn.Linear(2, 2, bias=False).double()
    recipe = wp.Recipe(EMA(decay=0.3, warm_up=True)).attach(model, wp.Classify())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    average = None
    for t in range(6):
        recipe.step({"x": torch.randn(4, 2).double(), "y": torch.arange(4) % 2}, optimizer)
        now = model.weight.detach().clone()
        d = min(0.3, (1 + t) / (10 + t))
        average = now if average is None else d * average + (1 - d) * now
    assert torch.allclose(recipe.listed[0].evaluation_state()["weight"], average, rtol=1e-12)
    assert [ema_decay(0.999, t, True) for t in (0, 90, 10**6)] == [0.1, 0.91, 0.999]


def test_before_the_first_update_the_model_itself_is_shipped() -> None:
    model = conv_net()
    recipe = wp.Recipe(EMA()).attach(model, wp.Classify())
    with torch.no_grad():
        model[0].weight.fill_(2.0)  # weights loaded after attach are not averaged with what was there before
    with recipe.evaluating() as inside:
        assert torch.equal(inside[0].weight, torch.full_like(inside[0].weight, 2.0))


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    model = nn.Linear(4, 2, bias=False).to(torch.bfloat16)
    recipe = wp.Recipe(EMA(decay=0.999)).attach(model, wp.Classify())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        recipe.step({"x": torch.randn(4, 4, dtype=torch.bfloat16), "y": torch.arange(4) % 2}, optimizer)
    assert recipe.listed[0].evaluation_state()["weight"].dtype == torch.float32
    assert recipe.finish().weight.dtype == torch.bfloat16


def test_tied_reparametrised_and_frozen_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), weight_norm(nn.Linear(4, 3)))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    recipe = wp.Recipe(EMA(decay=0.5)).attach(model, wp.Classify())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        recipe.step({"x": torch.randn(6, 4), "y": torch.arange(6) % 3}, optimizer)
    averaged = recipe.listed[0].evaluation_state()
    assert "0.bias" not in averaged
    assert "2.parametrizations.weight.original1" in averaged
    shipped = recipe.finish()
    assert shipped[0].weight is shipped[1].weight
    assert torch.equal(shipped[0].weight, averaged["0.weight"])


def test_resumes_with_the_average_it_had() -> None:
    model, batch = conv_net(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = wp.Recipe(EMA(decay=0.8, warm_up=True)).attach(model, wp.Classify())
    for _ in range(3):
        recipe.step(batch, optimizer)
    again = copy.deepcopy(model)
    other = wp.Recipe(EMA(decay=0.8, warm_up=True)).attach(again, wp.Classify())
    other.load_state_dict(recipe.state_dict())
    for r, m in ((recipe, model), (other, again)):
        opt = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(3):
            r.step(batch, opt)
        r.finish()
    assert all(torch.equal(a, again.state_dict()[k]) for k, a in model.state_dict().items())


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="decay must be 0 to 1"):
        EMA(decay=1.5)
