"""Sigma reparametrisation, and the entropy of attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import wellposed as wp
from wellposed.weights._matrices import Place
from wellposed.weights.sigma_reparam import (
    SigmaReparam,
    SigmaScaled,
    attention_entropies,
    attention_entropy,
    attention_entropy_bound,
)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def conv() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def transformer() -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))


def batch(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(12, 1, 8, 8, generator=g) if build is conv else torch.randn(12, 5, 8, generator=g)
    return {"x": x, "y": torch.arange(12) % 3}


both = pytest.mark.parametrize("build", [conv, transformer])


# ---- the weight
@pytest.mark.parametrize("place", [Place("", "weight"), Place("", "weight", 3), Place("", "weight", 1, 2)])
def test_value_and_gradient_of_the_weight(place: Place) -> None:
    weight = draw(6, 4, 2).requires_grad_()
    scaled = SigmaScaled(weight, place, steps=500)
    with torch.no_grad():
        scaled.gamma.copy_(torch.arange(1.0, 1.0 + place.blocks))
    if place.transposed:  # (in, units / groups, k) with two groups: the matrix has 8 rows
        rows = torch.stack([weight[3 * g : 3 * g + 3, u].flatten() for g in range(2) for u in range(4)])
        expected = weight / torch.linalg.matrix_norm(rows, 2)
    else:
        parts = weight.flatten(1).chunk(place.blocks)
        blocks = [(i + 1) * b / torch.linalg.matrix_norm(b, 2) for i, b in enumerate(parts)]
        expected = torch.cat(blocks).view(6, 4, 2)
    torch.testing.assert_close(scaled(weight), expected, rtol=1e-12, atol=0)
    direction = draw(6, 4, 2)
    ours, theirs = (torch.autograd.grad((w * direction).sum(), weight)[0] for w in (scaled(weight), expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # singular vectors converge half as fast as values
    assert torch.autograd.gradcheck(scaled, weight)


def test_scale_of_the_original_does_not_matter() -> None:
    """W -> a W leaves the weight as it is: only gamma sets its size."""
    weight = draw(5, 3)
    scaled = SigmaScaled(weight, Place("", "weight"), steps=300)
    torch.testing.assert_close(scaled(100 * weight), scaled(weight))


@both
def test_all_matrices_get_norm_gamma(build: Callable[[], nn.Sequential]) -> None:
    model = build()
    names, objects = list(model.state_dict()), [id(p) for p in model.parameters()]
    recipe = wp.Recipe(SigmaReparam(power_steps=30)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    terms = [recipe.step(batch(build), optimizer) for _ in range(20)]
    assert terms[-1]["task"] < terms[0]["task"]
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            gamma = module.get_parameter("parametrizations.weight.0.gamma")
            norm = torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)
            torch.testing.assert_close(norm, gamma.detach()[0].abs(), rtol=2e-3, atol=0)
            assert gamma != 1
    if build is transformer:
        fused = model.get_submodule("0.self_attn")
        norms = [torch.linalg.matrix_norm(w, 2) for w in fused.in_proj_weight.detach().chunk(3)]  # type: ignore[operator]
        gammas = fused.get_parameter("parametrizations.in_proj_weight.0.gamma").detach()
        torch.testing.assert_close(torch.stack(norms), gammas.abs(), rtol=2e-3, atol=0)
    model.eval()
    before = model(batch(build)["x"])
    recipe.detach()
    assert torch.equal(model(batch(build)["x"]), before)
    assert list(model.state_dict()) == names
    assert [id(p) for p in model.parameters()] == objects


@both
def test_init_sigma_keeps_the_function(build: Callable[[], nn.Sequential]) -> None:
    model, inits = build().eval(), {"one": False, "sigma": True}
    before = model(batch(build)["x"])
    for init, same in inits.items():
        recipe = wp.Recipe(SigmaReparam(init=init)).attach(build().eval(), wp.Classify(classes=3))  # type: ignore[arg-type]
        assert torch.equal(recipe.model(batch(build)["x"]), before) == same


def test_extra_passes_see_the_same_function() -> None:
    model = conv()
    wp.Recipe(SigmaReparam()).attach(model, wp.Classify(classes=3))
    x = batch(conv)["x"]
    assert torch.equal(model(x), model(x))


def test_shared_frozen_and_empty_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).to(torch.bfloat16))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    wp.Recipe(SigmaReparam()).attach(model, wp.Classify(classes=4))
    assert [parametrize.is_parametrized(m) for m in model] == [False, False, False, True]
    assert model[3].weight.dtype == torch.bfloat16
    with pytest.raises(wp.RecipeError, match="several layers share"):
        wp.Recipe(SigmaReparam()).attach(nn.Sequential(model[0], model[1]), wp.Classify(classes=4))
    empty = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(empty.get_parameter("1.weight"))
    with pytest.raises(wp.RecipeError, match=r"spectral norm of '1.weight', which is 0: give that layer"):
        wp.Recipe(SigmaReparam()).attach(empty, wp.Classify(classes=4))
    assert not parametrize.is_parametrized(empty[0])
    with pytest.raises(wp.RecipeError, match="both reparametrise 'weight' of '0'"):
        wp.Recipe(SigmaReparam(), SigmaReparam()).attach(conv(), wp.Classify(classes=3))
    with pytest.raises(ValueError, match="init must be 'one' or 'sigma', got 'two'"):
        SigmaReparam(init="two")  # type: ignore[arg-type]


# ---- entropy
def test_entropy_by_loops() -> None:
    attention = draw(2, 3, 4, 5).softmax(-1)
    attention[0, 0, 0] = torch.eye(5)[0]  # 0 log 0 = 0
    for head in range(3):
        rows = [attention[b, head, q] for b in range(2) for q in range(4)]
        mean = sum(-sum(float(p) * math.log(p) for p in row if p > 0) for row in rows) / 8
        assert attention_entropy(attention)[head].item() == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("tokens", [2, 4, 16])
@pytest.mark.parametrize("norm", [0.5, 2.0, 8.0])
def test_the_entropy_bound_holds_and_is_attained(norm: float, tokens: int) -> None:
    """Theorem 3.1: no logits of this length have less entropy, and those with one token up have that much."""
    bound = attention_entropy_bound(norm, tokens)
    best = torch.full((tokens,), -1 / math.sqrt(tokens * (tokens - 1)), dtype=torch.float64)
    best[0] = math.sqrt((tokens - 1) / tokens)
    attained = torch.special.entr((norm * best).softmax(0)).sum()
    assert attained.item() == pytest.approx(bound, rel=1e-9)
    logits = draw(64, tokens)
    for _ in range(200):  # projected descent on the entropy, from random starts
        logits = norm * torch.nn.functional.normalize(logits, dim=-1)
        logits.requires_grad_()
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
        assert entropy.min() > bound - 1e-9
        logits = (logits - 0.3 * norm * torch.autograd.grad(entropy.sum(), logits)[0]).detach()


def test_entropies_of_a_model() -> None:
    model = transformer()
    model.get_submodule("0.self_attn").dropout = 0.5  # type: ignore[assignment]
    x = batch(transformer)["x"]
    state = torch.get_rng_state()
    with attention_entropies(model) as found:
        torch.manual_seed(0)
        watched = model(x)
    torch.manual_seed(0)
    assert torch.equal(model(x), watched)  # nothing drawn for the watching
    torch.set_rng_state(state)
    layer = model.get_submodule("0.self_attn").eval()
    weights = layer(x, x, x, average_attn_weights=False)[1]
    torch.testing.assert_close(found["0.self_attn"], attention_entropy(weights.detach()))
    assert layer.dropout == 0.5
    assert not layer._forward_hooks
    with torch.no_grad():  # all keys alike: attention is even
        model.get_parameter("0.self_attn.in_proj_weight").zero_()
        model.get_parameter("0.self_attn.in_proj_bias").zero_()
        with attention_entropies(model.eval()) as even:
            model(x)
    torch.testing.assert_close(even["0.self_attn"], torch.full((2,), math.log(5)))
