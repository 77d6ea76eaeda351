"""Masked autoencoders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.papers.nets import masked_autoencoder, seeded
from wellposed.selfsup.mae import (
    MaskedAutoencoder,
    hidden_mask,
    normalised_patches,
    patchify,
    sine_positions,
    unpatchify,
    visible_places,
)


def images(rows: int = 6, channels: int = 2) -> Tensor:
    return torch.rand(rows, channels, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_patches() -> None:
    x = images()
    patches = patchify(x, 3)
    assert patches.shape == (6, 6, 18)
    for row in range(2):  # row by row, and inside a patch channel by channel
        for column in range(3):
            block = x[:, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            assert torch.equal(patches[:, 3 * row + column], block.flatten(1))
    assert torch.equal(unpatchify(patches, 3, (2, 6, 9)), x)
    with pytest.raises(ValueError, match="patches of 4 do not tile images of 6 x 9"):
        patchify(x, 4)


def test_normalised_patches() -> None:
    patches = patchify(images(), 3)
    found = normalised_patches(patches, eps=0.0)
    torch.testing.assert_close(found.mean(-1), torch.zeros(6, 6).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.std(-1), torch.ones(6, 6).double(), rtol=1e-12, atol=0)  # the unbiased one
    assert (normalised_patches(torch.ones(1, 1, 4)) == 0).all()  # a flat patch


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.5, 8), (0.0, 16), (0.99, 1), (0.7, 4)])
def test_how_many_places_stay_visible(ratio: float, kept: int) -> None:
    found = visible_places(5, 16, ratio)
    assert found.shape == (5, kept)
    assert (found.diff(dim=1) > 0).all()
    mask = hidden_mask(found, 16)
    assert mask.sum(1).tolist() == [16 - kept] * 5
    assert not mask.gather(1, found).any()


def test_visible_places_are_uniform_and_repeatable() -> None:
    g = torch.Generator().manual_seed(0)
    found = visible_places(4000, 8, 0.75, g)
    shown = (~hidden_mask(found, 8)).double().mean(0)
    assert (shown - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(visible_places(4000, 8, 0.75, torch.Generator().manual_seed(0)), found)
    with pytest.raises(ValueError, match="ratio must be 0 or more and below 1, got 1"):
        visible_places(2, 4, 1.0)


def test_positions() -> None:
    line = sine_positions(5, 4, 100.0)
    expected = torch.tensor([[i, i / 10] for i in range(5)], dtype=torch.float32)
    torch.testing.assert_close(line, torch.cat([expected.sin(), expected.cos()], 1))
    grid = sine_positions((2, 3), 8)
    torch.testing.assert_close(grid[:, :4], sine_positions(2, 4).repeat_interleave(3, 0))
    torch.testing.assert_close(grid[:, 4:], sine_positions(3, 4).repeat(2, 1))
    with pytest.raises(ValueError, match="width must be a multiple of 4, got 6"):
        sine_positions((2, 3), 6)


class Mix(nn.Module):
    """A stand-in for attention: every place sees the mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(1, keepdim=True)


def by_places(model: MaskedAutoencoder, x: Tensor, visible: Tensor) -> Tensor:
    """One sample and one place at a time."""
    predictions = []
    for sample, shown in zip(x, visible.tolist(), strict=True):
        tokens = torch.stack([model.embed(sample[t]) + model.place[t] for t in shown])
        states = model.bridge(model.encoder(tokens[None]))[0]
        full = []
        for t in range(len(sample)):
            state = states[shown.index(t)] if t in shown else model.mask_token
            full.append(state + model.decoder_place[t])
        predictions.append(model.head(model.decoder(torch.stack(full)[None]))[0])
    return torch.stack(predictions)


@pytest.mark.parametrize("kind", ["real", "token"])
def test_forward_one_place_at_a_time(kind: str) -> None:
    torch.manual_seed(0)
    embed = nn.Linear(3, 8) if kind == "real" else nn.Embedding(7, 8)
    outputs = 3 if kind == "real" else 7
    model = MaskedAutoencoder(embed, Mix(), Mix(), places=5, outputs=outputs, width=8, decoder_width=4).double()
    x = torch.rand(4, 5, 3).double() if kind == "real" else torch.randint(7, (4, 5))
    visible = visible_places(4, 5, 0.5)
    torch.testing.assert_close(model(x, visible), by_places(model, x, visible))
    everything = torch.arange(5).expand(4, 5)
    torch.testing.assert_close(model(x), model(x, everything))
    torch.testing.assert_close(model.encode(x), model.encode(x, everything))


def test_hidden_places_are_not_looked_at() -> None:
    model = seeded(0, masked_autoencoder, 6, 4, size=4, width=16)
    x, visible = torch.rand(3, 6, 4), visible_places(3, 6, 0.5)
    mask = hidden_mask(visible, 6)
    torch.testing.assert_close(model(x, visible), model(x.masked_fill(mask[..., None], 9.0), visible), rtol=0, atol=0)


def test_loss_counts_hidden_places_alone() -> None:
    visible = visible_places(3, 6, 0.5)
    mask = hidden_mask(visible, 6)
    prediction = torch.rand(3, 6, 4, requires_grad=True)
    task = wp.MaskedModel("real", visible=True)
    y = torch.rand(3, 6, 4)
    loss = task.mean_loss({"prediction": prediction}, {"y": y, "mask": mask})
    torch.testing.assert_close(loss, (prediction - y).square().mean(-1)[mask].mean())
    (slope,) = torch.autograd.grad(loss, prediction)
    assert (slope[~mask] == 0).all()
    assert (slope[mask] != 0).all()


def test_masked_model_with_visible_places() -> None:
    task = wp.MaskedModel("real", visible=True)
    assert repr(task) == "MaskedModel('real', visible=True)"
    assert "visible" in task.reads
    assert "visible" not in wp.MaskedModel("token", classes=3).reads
    batch = {"x": torch.rand(2, 3, 4), "y": torch.rand(2, 3, 4), "mask": torch.ones(2, 3).bool()}
    with pytest.raises(wp.RecipeError, match="'visible'"):
        wp.Recipe().attach(seeded(0, masked_autoencoder, 3, 4, size=4), task, example=batch)


def test_under_autocast_and_methods() -> None:
    """bfloat16 states meet the float32 mask token; weight penalties and SAM act as on any model."""
    model = seeded(0, masked_autoencoder, 6, 4, size=4, width=16)
    recipe = wp.Recipe(wp.L2(strength=1e-4), wp.SAM(rho=0.05))
    recipe.attach(model, wp.MaskedModel("real", visible=True), autocast=torch.bfloat16)
    x, visible = torch.rand(8, 6, 4), visible_places(8, 6, 0.5)
    batch = {"x": x, "y": x, "mask": hidden_mask(visible, 6), "visible": visible}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [float(recipe.step(batch, optimizer)["task"]) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
