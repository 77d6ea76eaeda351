"""Autoencoding: its loss against torch's own, the variational code, and models that are something else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.tasks import Autoencode, Autoencoder, normal_kl

TORCH: dict[Any, Any] = {"squared": F.mse_loss, "absolute": F.l1_loss, "bernoulli": F.binary_cross_entropy_with_logits}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(variational: bool = False) -> Autoencoder:
    """Images (B, 1, 8, 8), codes (B, 3); BatchNorm on both sides."""
    torch.manual_seed(0)
    width = 6 if variational else 3
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, width))
    decoder = nn.Sequential(
        nn.Linear(3, 64), nn.Unflatten(1, (4, 4, 4)), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1)
    )
    return Autoencoder(encoder, decoder, variational)


class Tokens(nn.Module):
    """A model of one's own: attention over (B, 5, 8), a code per token."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = self.down(self.layer(x))
        return {"reconstruction": self.up(code), "code": code}


@pytest.mark.parametrize("error", TORCH)
def test_error_is_torchs_summed_over_elements(error: Any) -> None:
    found, x = draw(5, 2, 3), draw(5, 2, 3, seed=1).sigmoid()
    rows = Autoencode(error).loss({"reconstruction": found, "code": found}, {"x": x})
    torch.testing.assert_close(rows, TORCH[error](found, x, reduction="none").sum((1, 2)))


def test_error_may_be_a_function_of_elements_or_of_samples() -> None:
    out = {"reconstruction": draw(5, 4), "code": draw(5, 2)}
    x = draw(5, 4, seed=1)
    by_element = Autoencode(lambda a, b: (a - b) ** 4).loss(out, {"x": x})
    by_sample = Autoencode(lambda a, b: ((a - b) ** 4).sum(1)).loss(out, {"x": x})
    torch.testing.assert_close(by_element, by_sample)
    with pytest.raises(ValueError, match="one value per element or per sample"):
        Autoencode(lambda a, b: (a - b).sum()).loss(out, {"x": x})


def test_bernoulli_is_for_the_unit_interval() -> None:
    """Beyond it the cross-entropy has no least value: it would train on, to no end."""
    found = draw(5, 4)
    for x in (draw(5, 4).abs() * 100, -draw(5, 4).sigmoid()):
        with pytest.raises(ValueError, match=r'"bernoulli" is for values in \[0, 1\], x has some from'):
            Autoencode("bernoulli").loss({"reconstruction": found}, {"x": x})


def test_divergence_is_torchs() -> None:
    mean, log_variance = draw(5, 3), draw(5, 3, seed=1)
    normal = torch.distributions.Normal
    own = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(torch.zeros_like(mean), torch.ones_like(mean))
    )
    torch.testing.assert_close(normal_kl(mean, log_variance), own.sum(1))
    assert normal_kl(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    inputs = (mean.requires_grad_(), log_variance.requires_grad_())
    assert torch.autograd.gradcheck(normal_kl, inputs)


def test_beta_weighs_the_divergence() -> None:
    model, x = conv(variational=True), torch.rand(6, 1, 8, 8)
    out = model(x)
    plain = F.mse_loss(out["reconstruction"], x, reduction="none").sum((1, 2, 3))
    kl = normal_kl(out["mean"], out["log_variance"])
    for beta in (0.0, 1.0, 4.0):
        torch.testing.assert_close(Autoencode(beta=beta).loss(out, {"x": x}), plain + beta * kl)


def test_bound_of_a_linear_model_is_below_its_likelihood() -> None:
    """-E log p(x | z) + KL >= -log p(x), with equality where the encoder is the posterior: probabilistic PCA.

    x = 2 z + noise of variance 1/2, the variance that "squared" stands for: z | x ~ N(4 x / 9, 1 / 9).
    """
    x = draw(7, 1)
    variance_of_x = 2**2 + 1 / 2
    exact = x[:, 0].square() / (2 * variance_of_x) + math.log(2 * math.pi * variance_of_x) / 2
    exact = exact - math.log(math.pi) / 2  # the constant that d^2 leaves out
    for gap, variance in ((0.0, 1 / 9), (0.3, 1 / 9), (0.0, 0.5)):
        mean = 4 * x / 9 + gap
        expected = (x - 2 * mean).square() + 4 * variance  # E (x - 2 z)^2
        kl = normal_kl(mean, torch.full_like(mean, variance).log())
        bound = expected[:, 0] + kl
        if gap == 0 and variance == 1 / 9:
            torch.testing.assert_close(bound, exact)
        else:
            assert (bound > exact + 0.1).all()


def test_code_is_drawn_in_training_and_the_mean_in_evaluation() -> None:
    torch.manual_seed(0)
    model = Autoencoder(nn.Linear(3, 4), nn.Linear(2, 3), variational=True).double()
    x = draw(1, 3).expand(20_000, 3)
    out = model(x)
    code, mean, deviation = out["code"], out["mean"][0], (out["log_variance"][0] / 2).exp()
    standard = (code - mean) / deviation
    assert standard.mean(0).abs().max() < 5 / 20_000**0.5  # five standard errors
    assert (standard.var(0) - 1).abs().max() < 5 * (2 / 20_000) ** 0.5
    torch.testing.assert_close(out["reconstruction"], model.decode(code))
    model.eval()
    quiet = model(x[:2])
    assert torch.equal(quiet["code"], quiet["mean"])
    torch.testing.assert_close(model.encode(x[:2]), mean.expand(2, 2))


def test_a_code_may_have_any_shape() -> None:
    """Maps of a fully convolutional variational model."""
    torch.manual_seed(0)
    model = Autoencoder(nn.Conv2d(1, 6, 2, 2), nn.ConvTranspose2d(3, 1, 2, 2), variational=True)
    x = torch.rand(4, 1, 8, 8)
    out = model(x)
    assert out["code"].shape == (4, 3, 4, 4)
    assert Autoencode(beta=1.0).loss(out, {"x": x}).shape == (4,)


def test_a_denoising_autoencoder_reconstructs_what_it_does_not_see() -> None:
    """A linear one on noise of variance 1/2 around points of variance 2 learns the shrinkage 2 / (2 + 1/2)."""
    model = Autoencoder(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for weight in model.parameters():
        nn.init.constant_(weight, 0.5)
    clean, noise = 2**0.5 * draw(4000, 1), 0.5**0.5 * draw(4000, 1, seed=1)
    recipe = wp.Recipe(seed=0).attach(model, Autoencode(of="clean"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(100):
        recipe.step({"x": clean + noise, "clean": clean}, optimizer)
    best = float((clean * (clean + noise)).sum() / (clean + noise).square().sum())  # of this sample
    assert float(model.decode(model.encode(torch.ones(1, 1).double())).detach()) == pytest.approx(best, abs=1e-9)
    assert best == pytest.approx(0.8, abs=0.05)
    with pytest.raises(wp.RecipeError, match="needs 'clean'"):
        wp.Recipe().attach(model, Autoencode(of="clean"), example={"x": clean})


@pytest.mark.parametrize("kind", ["conv", "variational conv", "transformer"])
def test_trains(kind: str) -> None:
    model = Tokens() if kind == "transformer" else conv(kind == "variational conv")
    x = torch.rand(12, 5, 8) if kind == "transformer" else torch.rand(12, 1, 8, 8)
    task = Autoencode(beta=0.1 if kind == "variational conv" else None)
    recipe = wp.Recipe(wp.SAM(rho=0.01)).attach(model, task)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = [float(recipe.step({"x": x}, optimizer)["task"]) for _ in range(40)]
    assert losses[-1] < 0.6 * losses[0]


def test_noise_of_the_code_belongs_to_the_step() -> None:
    """An update is the same whatever has drawn from the global generator before it."""
    trained = []
    for elsewhere in (0, 1):
        model = conv(variational=True)
        torch.manual_seed(elsewhere)
        recipe = wp.Recipe(seed=3).attach(model, Autoencode(beta=1.0))
        recipe.step({"x": torch.ones(4, 1, 8, 8)}, torch.optim.SGD(model.parameters(), lr=0.01))
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*trained)


def test_half_precision_is_summed_wide() -> None:
    model, x = conv(variational=True), torch.rand(4, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        rows = Autoencode(beta=1.0).loss(out, {"x": x})
    assert rows.dtype == torch.float32
    assert out["reconstruction"].dtype == torch.bfloat16


def test_models_that_are_something_else() -> None:
    x = torch.rand(4, 6)
    one = Autoencoder(nn.Linear(6, 2), nn.Linear(2, 6))
    several = Autoencoder(nn.Linear(6, 4), nn.Linear(2, 6), variational=True)
    with pytest.raises(ValueError, match=r"must return a mapping with 'reconstruction' and 'code'.*got Tensor"):
        Autoencode().forward(nn.Linear(6, 6), {"x": x})
    with pytest.raises(ValueError, match="without 'mean'; beta is for variational models"):
        Autoencode(beta=1.0).forward(one, {"x": x})
    with pytest.raises(ValueError, match=r"the model is variational.*give beta"):
        Autoencode().forward(several, {"x": x})
    narrow = Autoencoder(nn.Linear(6, 2), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"reconstruction has shape \(4, 1\), x has \(4, 6\)"):
        Autoencode().loss(Autoencode().forward(narrow, {"x": x}), {"x": x})
    with pytest.raises(ValueError, match=r"an even number of columns; got shape \(4, 3\)"):
        Autoencoder(nn.Linear(6, 3), nn.Linear(2, 6), variational=True)(x)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"error": "cubic"}, "squared, absolute, bernoulli"), ({"beta": -1.0}, "beta must be at least 0")],
)
def test_bad_settings(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Autoencode(**wrong)


def test_repr_evaluates_back() -> None:
    again = eval(repr(Autoencode("absolute", beta=4.0)))
    assert (again.error, again.beta) == ("absolute", 4.0)
    assert eval(repr(Autoencode())).beta is None
    assert eval(repr(Autoencode(of="clean"))).reads == ("x", "clean")
