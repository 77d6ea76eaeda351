"""Latent quantization."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.generative.latent_quantization import LatentQuantization, LatentQuantizer, codebook_groups
from wellposed.parts.codebooks import Codebook


def quantizer() -> LatentQuantizer:
    book = LatentQuantizer(3, 4).double()
    with torch.no_grad():
        noise = torch.randn(book.book.codes.shape, generator=torch.Generator().manual_seed(1))
        book.book.codes.add_(0.05 * noise)
    return book


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Watched(nn.Module):
    """Latents straight from the batch, so that their gradient can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.quantizer = nn.Parameter(draw(6, 3)), quantizer()

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(self.z)


def test_values_and_gradients_by_explicit_loops() -> None:
    """The task passes its gradient to the latents as if nothing were rounded; the two errors are the papers'."""
    model = Watched()
    z, values = model.z.detach().clone(), model.quantizer.book.codes.detach().squeeze(-1).clone()
    recipe = wp.Recipe(LatentQuantization(strength=0.1, commitment=0.5)).attach(model, wp.Regress())
    y = draw(6, 3) + 1
    terms = recipe.step({"x": draw(6, 1), "y": y}, torch.optim.SGD(model.parameters(), lr=0.0))
    penalty, to_z, to_values = 0.0, torch.zeros(6, 3).double(), torch.zeros(3, 4).double()
    for i in range(6):
        for j in range(3):
            k = min(range(4), key=lambda k: abs(float(z[i, j] - values[j, k])))
            gap = z[i, j] - values[j, k]
            penalty += 0.1 * float(gap**2 * (1 + 0.5)) / 18
            to_z[i, j] = 0.1 * 0.5 * 2 * gap / 18 + 2 * (values[j, k] - y[i, j]) / 18
            to_values[j, k] += -0.1 * 2 * gap / 18
    assert terms["LatentQuantization"].item() == pytest.approx(penalty, rel=1e-12)
    assert model.z.grad is not None
    assert model.quantizer.book.codes.grad is not None
    torch.testing.assert_close(model.z.grad, to_z, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(model.quantizer.book.codes.grad.squeeze(-1), to_values, rtol=1e-12, atol=1e-16)


def test_starts_evenly_and_tells_the_indices() -> None:
    book = LatentQuantizer(2, 5, low=-1, high=1)
    assert book.book.codes.squeeze(-1).tolist() == [[-1, -0.5, 0, 0.5, 1]] * 2
    z = torch.tensor([[-9.0, 0.3], [0.2, 0.8]])
    assert book.indices(z).tolist() == [[0, 3], [2, 4]]
    assert book(z).tolist() == [[-1, 0.5], [0, 1]]


def encoder(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "conv":
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 4),
        )
    block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (8, 8)), block, nn.Flatten(), nn.Linear(64, 4))


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains_an_autoencoder(kind: str) -> None:
    """With it, latents and values come together; both arms learn to reconstruct."""
    torch.manual_seed(1)
    x = torch.randn(24, 2) @ torch.randn(2, 64)
    errors = []
    for methods in ([], [LatentQuantization(strength=10.0)]):
        model = wp.Autoencoder(nn.Sequential(inner := encoder(kind), book := LatentQuantizer(4, 6)), nn.Linear(4, 64))
        recipe = wp.Recipe(*methods).attach(model, wp.Autoencode())
        optimizer = torch.optim.AdamW(codebook_groups(model, 0.1), lr=0.01)
        losses = [recipe.step({"x": x}, optimizer)["task"] for _ in range(60)]
        assert losses[-1] < 0.7 * losses[0]
        errors.append(book.book(inner(x)).commitment_error().mean().item())
    assert errors[1] < 0.5 * errors[0]


class Levels(nn.Module):
    """Two codebooks that get tokens, (B * T, D), at two resolutions; ``drop`` leaves the first token out."""

    def __init__(self, drop: int) -> None:
        super().__init__()
        self.drop = drop
        self.fine, self.coarse = (Codebook(torch.randn(1, 4, 2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x.reshape(-1, 2)[self.drop :]).values
        coarse = self.coarse(x.view(-1, 2, 2, 2).mean(2).reshape(-1, 2)).values
        return x.mean((1, 2)).unsqueeze(1) + 0 * (fine.sum() + coarse.sum())


@pytest.mark.parametrize("drop", [0, 1])
def test_codebooks_of_tokens_at_two_resolutions(drop: int) -> None:
    torch.manual_seed(0)
    model, x = Levels(drop), torch.randn(3, 4, 2)
    fine, coarse = model.fine(x.reshape(-1, 2)[drop:]), model.coarse(x.view(-1, 2, 2, 2).mean(2).reshape(-1, 2))
    wanted = [torch.cat([q.quantization_error(), q.commitment_error()]).mean() * 2 for q in (fine, coarse)]
    recipe = wp.Recipe(LatentQuantization(strength=1.0)).attach(model, wp.Regress())
    terms = recipe.step({"x": x, "y": torch.randn(3)}, torch.optim.SGD(model.parameters(), lr=0.1))
    torch.testing.assert_close(terms["LatentQuantization"], torch.stack(wanted).mean().detach())


def test_values_are_exempt_from_weight_decay() -> None:
    model = wp.Autoencoder(nn.Sequential(nn.Linear(6, 3), LatentQuantizer(3, 4)), nn.Linear(3, 6))
    model.decoder.bias.requires_grad_(False)
    decayed, exempt = codebook_groups(model, 0.3)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)
    assert [p.shape for p in exempt["params"]] == [(3, 4, 1)]
    assert len(decayed["params"]) == 3
    before = model.encoder[1].book.codes.detach().clone()  # type: ignore[index]
    optimizer = torch.optim.AdamW([decayed, exempt], lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(before, model.encoder[1].book.codes)  # type: ignore[index]


def test_bad_settings() -> None:
    with pytest.raises(wp.RecipeError, match=r"put a LatentQuantizer\(latents\) behind the encoder"):
        wp.Recipe(LatentQuantization()).attach(nn.Linear(2, 2), wp.Classify())
    with pytest.raises(ValueError, match="at least 1 latent and 2 values, got 3 latents and 1 values"):
        LatentQuantizer(3, 1)
    with pytest.raises(ValueError, match="low must be below high"):
        LatentQuantizer(3, 4, 1.0, 1.0)
