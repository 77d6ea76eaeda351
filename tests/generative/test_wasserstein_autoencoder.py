"""Wasserstein autoencoders."""

from __future__ import annotations

import math

import pytest
import torch
from autoencoders import KINDS, build, trained
from torch import Tensor, nn

import wellposed as wp
from wellposed.generative.wasserstein_autoencoder import WAE, code_mmd, sample_prior


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(z: Tensor, p: Tensor, deviation: float) -> float:
    """Algorithm 2 with its sums over l != j and the kernels of its appendix."""
    n, c = len(z), 2 * z.shape[1] * deviation**2

    def k(a: Tensor, b: Tensor) -> float:
        square = math.dist(a.tolist(), b.tolist()) ** 2
        return sum(s * c / (s * c + square) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    within = sum(k(z[i], z[j]) + k(p[i], p[j]) for i in range(n) for j in range(n) if i != j)
    return within / (n * (n - 1)) - 2 / n**2 * sum(k(a, b) for a in z for b in p)


@pytest.mark.parametrize("deviation", [1.0, 0.5])
def test_value_by_explicit_loops(deviation: float) -> None:
    z, p = draw(5, 3), deviation * draw(5, 3, seed=1)
    assert code_mmd(z, p, deviation).item() == pytest.approx(by_loops(z, p, deviation), rel=1e-11)


def test_gradient() -> None:
    z, p = draw(4, 2).requires_grad_(), draw(5, 2, seed=1)
    assert torch.autograd.gradcheck(lambda code: code_mmd(code, p), (z,))


def test_of_the_prior_itself_it_is_zero_in_expectation() -> None:
    found = torch.stack([code_mmd(draw(20, 3, seed=2 * i), draw(20, 3, seed=2 * i + 1)) for i in range(200)])
    assert found.mean().abs() < 4 * found.std() / 200**0.5
    assert found.min() < 0 < found.max()


def test_the_method_adds_strength_times_it_of_codes_and_prior() -> None:
    model, x = build("transformer")
    code = model(x)["code"].detach()
    terms = trained(model, x, method := WAE(strength=3.0, deviation=2.0), steps=1)[0]
    recipe = wp.Recipe(method)
    draws = wp.core.step.Step(recipe.attach(model, wp.Autoencode()), None, None).rng(method, shared=True)
    prior = 2.0 * torch.randn(code.shape, generator=draws)
    torch.testing.assert_close(terms["WAE"], 3.0 * code_mmd(code, prior, 2.0))


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_become_normal(kind: str, variational: bool) -> None:
    """A variational code without its divergence is matched by its draws."""
    distances = []
    for methods in ((), (WAE(strength=30.0),)):
        model, x = build(kind, variational)
        trained(model, x, *methods, beta=0.0 if variational else None)
        distances.append(float(code_mmd(model(x)["code"].detach().double(), draw(500, 3))))
    assert distances[1] < 0.3 * distances[0]


def test_generating() -> None:
    model, _ = build("conv")
    g = torch.Generator().manual_seed(0)
    made = sample_prior(model.decoder, 7, 3, deviation=0.5, generator=g)
    assert made.shape == (7, 1, 8, 8)
    assert not made.requires_grad
    assert model.decoder.training
    model.eval()
    again = model.decode(0.5 * torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(made, again)
    assert sample_prior(nn.Flatten().double(), 2, 3).shape == (2, 3)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="deviation must be above 0"):
        WAE(deviation=0.0)
    with pytest.raises(wp.RecipeError, match="WAE needs 'code'"):
        wp.Recipe(WAE()).attach(nn.Linear(2, 2), wp.Classify(classes=2))
    model, x = build("transformer")
    with pytest.raises(ValueError, match="at least 2 rows"):
        trained(model, x[:1], WAE())
