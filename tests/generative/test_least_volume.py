"""Least volume."""

from __future__ import annotations

import math

import pytest
import torch
from autoencoders import KINDS, build, trained
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import wellposed as wp
from wellposed.generative.least_volume import LeastVolume, latent_importance, least_volume, prune_latents


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.0, 0.01, 1.0])
def test_value_by_explicit_loops(eta: float) -> None:
    z = draw(7, 3)
    product = 1.0
    for column in z.T.tolist():
        mean = sum(column) / 7
        product *= math.sqrt(sum((v - mean) ** 2 for v in column) / 6) + eta
    assert least_volume(z, eta).item() == pytest.approx(product ** (1 / 3), rel=1e-12)


def test_gradient() -> None:
    assert torch.autograd.gradcheck(least_volume, (draw(6, 3).requires_grad_(),))


def test_a_coordinate_that_does_not_vary_has_a_gradient() -> None:
    z = torch.cat([draw(6, 2), torch.ones(6, 1)], 1).requires_grad_()
    (slope,) = torch.autograd.grad(least_volume(z), z)
    assert slope.isfinite().all()
    assert slope[:, 2].abs().max() == 0


def test_it_scales_like_a_length() -> None:
    z = draw(6, 3)
    torch.testing.assert_close(least_volume(2.5 * z, 0.0), 2.5 * least_volume(z, 0.0))
    torch.testing.assert_close(least_volume(2.5 * z + 7, 0.25), 2.5 * least_volume(z, 0.1))


def test_a_large_eta_makes_it_the_mean_deviation() -> None:
    """Geometric and arithmetic mean of large numbers differ by half their relative variance."""
    z, eta = draw(6, 3), 1e4
    spread = z.std(0)
    gap = (spread.mean() + eta) - least_volume(z, eta)
    assert 0 <= gap <= spread.var(correction=0) / eta


def test_of_equal_sum_the_flattest_has_the_least_volume() -> None:
    """The reason it prunes where the mean of deviations does not care."""
    base = draw(50, 2)
    base = base / base.std(0)
    volumes = [float(least_volume(base * torch.tensor([1 + s, 1 - s]), 0.0)) for s in (0.0, 0.5, 0.9)]
    assert volumes[0] > volumes[1] > volumes[2]
    assert volumes[1] == pytest.approx(math.sqrt(1.5 * 0.5), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_is_held_and_code_flattens(kind: str) -> None:
    volumes = []
    for strength in (0.0, 1.0):
        model, x = build(kind)
        trained(model, x, LeastVolume(strength=strength), steps=150)
        volumes.append(float(least_volume(model(x)["code"].detach())))
        held = [m for m in model.decoder.modules() if parametrize.is_parametrized(m)]
        assert len(held) == 2
        for layer in held:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            if isinstance(layer, nn.ConvTranspose2d):
                weight = weight.transpose(0, 1)
            assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
        assert not any(parametrize.is_parametrized(m) for m in model.encoder.modules())
    assert volumes[1] < 0.5 * volumes[0]


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_bounded_by_the_root_of_its_kernels_area(kind: type[nn.Conv2d], groups: int) -> None:
    """Its norm on images, where the kernel as a matrix has norm 1; equal weights come near the bound."""
    layer = kind(4, 6, 3, padding=1, bias=False, groups=groups).double()
    nn.init.ones_(layer.weight)
    wp.Recipe(LeastVolume()).attach(model := wp.Autoencoder(nn.Flatten(), layer), wp.Autoencode())
    images = torch.eye(4 * 64, dtype=torch.float64).view(-1, 4, 8, 8)
    norm = torch.linalg.matrix_norm(model.eval().decode(images).flatten(1), 2)
    assert 1.5 < norm <= 3


def test_what_detaching_leaves_computes_the_same() -> None:
    model, x = build("conv")
    names = [name for name, _ in model.named_parameters()]
    recipe = wp.Recipe(LeastVolume()).attach(model, wp.Autoencode())
    recipe.step({"x": x}, torch.optim.Adam(model.parameters(), lr=0.01))
    model.eval()
    before = model(x)["reconstruction"]
    model.train()
    recipe.detach()
    torch.testing.assert_close(model.eval()(x)["reconstruction"], before, rtol=0, atol=0)
    assert [name for name, _ in model.named_parameters()] == names


def test_attaching_does_not_draw() -> None:
    model, _ = build("conv")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    wp.Recipe(LeastVolume()).attach(model, wp.Autoencode())
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("trained_before", [False, True])
def test_spectral_normalisation_by_a_hook_counts(trained_before: bool) -> None:
    model, x = build("transformer")
    first = next(model.decoder.children())
    nn.utils.spectral_norm(first)
    if trained_before:
        trained(model, x, steps=1)
    trained(model, x, LeastVolume(), steps=1)
    assert not parametrize.is_parametrized(first)
    assert torch.linalg.matrix_norm(first.weight, 2).item() < 1.5


def test_layers_that_are_bounded_already_are_left_alone() -> None:
    model, x = build("transformer")
    first, _, last, _ = model.decoder.children()
    spectral_norm(first)
    last.requires_grad_(False)
    kept = nn.utils.parameters_to_vector(last.parameters())
    recipe = wp.Recipe(LeastVolume()).attach(model, wp.Autoencode())
    recipe.step({"x": x}, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01))
    recipe.detach()
    assert parametrize.is_parametrized(first)
    assert torch.equal(nn.utils.parameters_to_vector(last.parameters()), kept)


# ---- after training
def test_pruning_keeps_what_varies() -> None:
    code = draw(40, 4) * torch.tensor([1.0, 0.005, 2.0, 0.0]) + torch.arange(4)
    pruned = prune_latents(code, 0.01)
    assert pruned.kept.tolist() == [True, False, True, False]
    new = draw(5, 4, seed=1)
    found = pruned(new)
    assert torch.equal(found[:, pruned.kept], new[:, pruned.kept])
    torch.testing.assert_close(found[:, 1], code[:, 1].mean().expand(5))
    assert pruned(new.float()).dtype == torch.float32
    assert sorted(pruned.state_dict()) == ["kept", "mean"]
    assert prune_latents(code, 0.0).kept.tolist() == [True, True, True, False]


def test_importance_in_a_linear_model_is_the_variance() -> None:
    """Principal components: a fixed coordinate costs its variance, so importance and deviation agree in order."""
    x = draw(60, 5) * torch.tensor([3.0, 0.1, 1.0, 0.5, 2.0]) + 4
    _, sizes, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    decoder = nn.Linear(5, 5).double()
    decoder.load_state_dict({"weight": directions.T, "bias": x.mean(0)})
    code = (x - x.mean(0)) @ directions.T
    torch.testing.assert_close(latent_importance(decoder, code, x), sizes.square() / 60)


def test_importance_looks_in_evaluation_mode() -> None:
    model, x = build("conv")
    decoder = nn.Sequential(nn.Dropout(), model.decoder)
    code = model.encode(x)
    torch.testing.assert_close(latent_importance(decoder, code, x), latent_importance(model.decoder, code, x))
    assert decoder.training


# ---- refusals
def attach(decoder: nn.Module, name: str = "decoder") -> None:
    wp.Recipe(LeastVolume(decoder=name)).attach(wp.Autoencoder(nn.Linear(4, 2), decoder), wp.Autoencode())


def test_decoders_that_cannot_be_held_are_refused() -> None:
    with pytest.raises(wp.RecipeError, match=r"'decoder.1' is a BatchNorm1d, which nothing keeps from stretching"):
        attach(nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)))
    with pytest.raises(wp.RecipeError, match=r"'decoder.1' is a LayerNorm"):
        attach(nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 4)))
    with pytest.raises(wp.RecipeError, match=r"'decoder' is a GRU"):
        attach(nn.GRU(2, 4))
    with pytest.raises(wp.RecipeError, match=r"'decoder.self_attn' is a MultiheadAttention"):
        attach(nn.TransformerEncoderLayer(4, 2))
    with pytest.raises(wp.RecipeError, match=r"no submodule 'head' .*it has encoder, decoder\. Name its decoder"):
        attach(nn.Linear(2, 4), "head")
    with pytest.raises(wp.RecipeError, match="has no linear layer or convolution"):
        attach(nn.Flatten())
    with pytest.raises(wp.RecipeError, match=r"both reparametrise 'decoder.weight'"):
        attach(weight_norm(nn.Linear(2, 4)))
    hooked, pruned = nn.Linear(2, 4), nn.Linear(2, 4)
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(hooked)
    prune.l1_unstructured(pruned, "weight", 0.5)  # type: ignore[no-untyped-call]
    for made in (hooked, pruned):
        with pytest.raises(wp.RecipeError, match=r"both reparametrise 'decoder.weight'"):
            attach(made)
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    with pytest.raises(wp.RecipeError, match=r"'decoder.1' shares its weight with another layer"):
        attach(nn.Sequential(nn.Linear(2, 4), one, two))
    zero = nn.Linear(2, 4)
    nn.init.zeros_(zero.weight)
    with pytest.raises(wp.RecipeError, match="is 0 and has no norm to divide by"):
        attach(zero)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="eta must be at least 0"):
        LeastVolume(eta=-0.1)
    with pytest.raises(ValueError, match="needs at least 2 codes"):
        least_volume(draw(1, 3))
    with pytest.raises(ValueError, match="needs at least 2 codes"):
        prune_latents(draw(1, 3))
    with pytest.raises(ValueError, match=r"latent_importance: needs codes \(N, d\), got \(4, 3, 2\)"):
        latent_importance(nn.Linear(2, 2), draw(4, 3, 2), draw(4, 3, 2))
    with pytest.raises(ValueError, match="tolerance must be at least 0 and below 1"):
        prune_latents(draw(4, 3), 1.0)
    with pytest.raises(wp.RecipeError, match="LeastVolume needs 'code'"):
        wp.Recipe(LeastVolume()).attach(nn.Linear(2, 2), wp.Classify(classes=2))
