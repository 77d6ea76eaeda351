"""Decoupled decay against torch's AdamW, closed forms, schedules and parameter groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.weights.decoupled_weight_decay import (
    CosineRestarts,
    DecoupledWeightDecay,
    no_decay_groups,
    normalized_weight_decay,
)


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )


def transformer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    return nn.Sequential(nn.Embedding(7, 8), nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(40, 3))


def batch_of(build: object) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randint(7, (12, 5), generator=g) if build is transformer else torch.randn(12, 1, 8, 8, generator=g)
    return {"x": x, "y": torch.arange(12) % 3}


def train(recipe: wp.Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.3)
    recipe.attach(model, wp.Classify())
    for _ in range(6):
        recipe.step(batch, optimizer)
        scheduler.step()


@pytest.mark.parametrize("build", [conv_net, transformer])
@pytest.mark.parametrize("foreach", [False, True])
def test_adam_with_it_is_adamw_to_the_bit(build: object, foreach: bool) -> None:
    ours, theirs, batch = build(), build(), batch_of(build)
    adam = torch.optim.Adam(ours.parameters(), lr=1e-2, foreach=foreach)
    train(wp.Recipe(DecoupledWeightDecay(strength=0.3)), ours, adam, batch)
    train(wp.Recipe(), theirs, torch.optim.AdamW(no_decay_groups(theirs, 0.3), lr=1e-2, foreach=foreach), batch)
    for (k, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), k


def test_every_group_has_its_learning_rate() -> None:
    """lr 1 and 0.1 with the gradient turned off: theta is multiplied by (1 - lr strength) a step."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    groups = [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[1].parameters(), "lr": 0.1}]
    recipe = wp.Recipe(DecoupledWeightDecay(strength=0.2)).attach(model, Zero())
    optimizer = torch.optim.SGD(groups)
    for _ in range(5):
        recipe.step({"x": torch.randn(2, 3).double(), "y": torch.zeros(2)}, optimizer)
    for name, factor in (("0.weight", 0.8**5), ("1.weight", 0.98**5), ("0.bias", 1.0), ("1.bias", 1.0)):
        assert torch.allclose(dict(model.named_parameters())[name], factor * before[name], rtol=1e-14), name


class Zero(wp.Task):
    """A loss whose gradient is zero everywhere."""

    reads, yields = ("x",), ("out",)

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"out": model(batch["x"])}

    def loss(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return 0.0 * out["out"].sum(1)


def test_gradient_noise_is_decayed_alike_whatever_its_size() -> None:
    """Claim of the paper: under noise of sd s Adam's L2 decays 1 / s as much, decoupled decay (1 - lr strength)^t."""

    class Noise(Zero):
        def loss(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
            return (batch["n"] * out["w"]).sum().expand(1)

        def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"w": next(model.parameters())}

    lr, strength, steps = 1e-2, 0.1, 300
    g = torch.Generator().manual_seed(0)
    mean = {}
    for sd in (1.0, 100.0):
        for decoupled in (True, False):
            model = nn.Linear(3000, 1, bias=False)
            nn.init.ones_(model.weight)
            optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=0.0 if decoupled else strength)
            recipe = wp.Recipe(*[DecoupledWeightDecay(strength=strength)] * decoupled).attach(model, Noise())
            for _ in range(steps):
                recipe.step({"x": torch.zeros(1), "n": sd * torch.randn(1, 3000, generator=g)}, optimizer)
            mean[sd, decoupled] = model.weight.mean().item()
    shrunk = (1 - lr * strength) ** steps  # 0.74
    tolerance = 5 * lr * math.sqrt(steps / 3000)  # five standard errors of a walk with steps of about lr
    assert mean[1.0, True] == pytest.approx(shrunk, abs=tolerance)
    assert mean[100.0, True] == pytest.approx(shrunk, abs=tolerance)
    assert mean[100.0, False] == pytest.approx((1 - lr * strength / 100) ** steps, abs=tolerance)


def test_patterns_except_parameters() -> None:
    model = transformer()
    groups = no_decay_groups(model, 0.1, ["0.weight", "*.linear?.*"])
    names = {id(p): n for n, p in model.named_parameters()}
    with_decay = {names[id(p)] for p in groups[0]["params"]}
    assert with_decay == {"1.layers.0.self_attn.in_proj_weight", "1.layers.0.self_attn.out_proj.weight", "3.weight"}
    assert len(groups[0]["params"]) + len(groups[1]["params"]) == len(names)
    assert groups[1]["weight_decay"] == 0.0
    kept = model[0].weight.detach().clone()
    recipe = wp.Recipe(DecoupledWeightDecay(strength=0.9, no_decay=("0.weight",))).attach(model, Tokens())
    recipe.step(batch_of(transformer), torch.optim.SGD(model.parameters(), lr=0.5))
    assert torch.equal(model[0].weight, kept)


class Tokens(Zero):
    def loss(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return 0.0 * out["out"].sum(1)


def test_tied_weights_decay_once_and_unused_ones_never() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[2].forward = lambda x: x  # its own weight takes no part
    kept = [model[i].weight.detach().clone() for i in (0, 2)]
    recipe = wp.Recipe(DecoupledWeightDecay(strength=1.0)).attach(model, Zero())
    recipe.step({"x": torch.randn(2, 4), "y": torch.zeros(2)}, torch.optim.SGD(model.parameters(), lr=0.25))
    assert torch.equal(model[0].weight, 0.75 * kept[0])
    assert torch.equal(model[2].weight, kept[1])


def test_normalized_weight_decay() -> None:
    assert normalized_weight_decay(0.025, 128, 50_000, 100, 1e-3) == pytest.approx(0.025 * math.sqrt(128 / 5e6) / 1e-3)
    with pytest.raises(ValueError, match="positive batch, rows, epochs and lr"):
        normalized_weight_decay(0.025, 128, 50_000, 0, 1e-3)


def test_cosine_restarts() -> None:
    schedule = CosineRestarts(start=1.0, stop=0.2, cycles=3, factor=2.0)  # cycles end at 1/7, 3/7 and 1
    assert schedule(0.0) == 1.0
    for begin, end in ((0, 1 / 7), (1 / 7, 3 / 7), (3 / 7, 1.0)):
        assert schedule(begin + 1e-9) == pytest.approx(1.0, abs=1e-6)
        assert schedule((begin + end) / 2) == pytest.approx(0.6)
        assert schedule(end - 1e-9) == pytest.approx(0.2, abs=1e-6)
    assert schedule(1.0) == pytest.approx(0.2)
    assert CosineRestarts(1.0, cycles=1)(0.3) == wp.Cosine(1.0, 0.0)(0.3)
    with pytest.raises(ValueError, match="at least one cycle"):
        CosineRestarts(1.0, cycles=0)
    recipe = wp.Recipe(DecoupledWeightDecay(strength=schedule))
    assert repr(wp.load_recipe(recipe.to_toml())) == repr(recipe)


def test_a_schedule_sets_the_strength() -> None:
    model = nn.Linear(3, 2, bias=False)
    kept = model.weight.detach().clone()
    recipe = wp.Recipe(DecoupledWeightDecay(strength=wp.Linear(0.0, 1.0))).attach(model, Zero())
    recipe.step(
        {"x": torch.randn(2, 3), "y": torch.zeros(2)}, torch.optim.SGD(model.parameters(), lr=0.5), progress=0.5
    )
    assert torch.equal(model.weight, 0.75 * kept)


def test_bad_input() -> None:
    with pytest.raises(wp.RecipeError, match=r"no parameter is called 'embed\.\*'"):
        wp.Recipe(DecoupledWeightDecay(no_decay=("embed.*",))).attach(conv_net(), wp.Classify())
    with pytest.raises(wp.RecipeError, match="none is left"):
        wp.Recipe(DecoupledWeightDecay()).attach(nn.BatchNorm1d(3), wp.Classify())
    with pytest.raises(ValueError, match="strength must be at least 0"):
        DecoupledWeightDecay(strength=-0.1)
