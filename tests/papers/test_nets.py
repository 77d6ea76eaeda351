"""The claims' networks: shapes on digits and text, seeds, and that they learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.papers.nets import ConvNet, Transformer, masked_autoencoder, seeded
from wellposed.selfsup.mae import hidden_mask, patchify, visible_places


def test_conv_net_takes_flat_and_square_digits() -> None:
    net = ConvNet(3, width=4).eval()
    x = torch.rand(5, 64)
    assert net.features(x).shape == (5, 32)
    assert torch.equal(net(x), net(x.reshape(5, 1, 8, 8)))
    assert ConvNet(3, width=4, side=11, channels=2)(torch.rand(2, 2, 11, 11)).shape == (2, 3)


def test_weights_are_a_function_of_the_seed() -> None:
    before = torch.get_rng_state()
    a, b, c = (seeded(s, ConvNet, 3) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.head.weight, c.head.weight)


def test_every_place_sees_every_other() -> None:
    net = seeded(0, Transformer, 6, 4, ids=9).eval()
    ids = torch.arange(6)[None]
    for place in range(6):
        other = ids.clone()
        other[0, place] = 8
        assert ((net(ids) - net(other)).abs().amax(-1) > 1e-6).all()


def test_shapes() -> None:
    ids, vectors = torch.randint(9, (3, 6)), torch.rand(3, 6, 4)
    assert Transformer(6, 9, ids=9)(ids).shape == (3, 6, 9)
    assert Transformer(6, 5, size=4, pooled=True)(vectors).shape == (3, 5)
    assert Transformer(8, 5, size=4).states(vectors).shape == (3, 6, 32)  # shorter than the length
    with pytest.raises(ValueError, match="either ids"):
        Transformer(6, 9, ids=9, size=4)
    with pytest.raises(ValueError, match="either ids"):
        Transformer(6, 9)


def fitted(model: nn.Module, task: wp.Task, batch: dict[str, Tensor], steps: int = 60) -> list[float]:
    recipe = wp.Recipe().attach(model, task)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return [float(recipe.step(batch, optimizer)["task"]) for _ in range(steps)]


@pytest.mark.parametrize("kind", ["conv", "patches", "text"])
def test_learns(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(12, 1, 8, 8, generator=g), torch.arange(12) % 3
    if kind == "conv":
        losses = fitted(seeded(0, ConvNet, 3), wp.Classify(classes=3), {"x": x, "y": y})
    elif kind == "patches":
        net = seeded(0, Transformer, 16, 3, size=4, width=16, pooled=True)
        losses = fitted(net, wp.Classify(classes=3), {"x": patchify(x, 2), "y": y})
    else:
        net = seeded(0, Transformer, 6, 3, ids=9, width=16, pooled=True)
        ids = torch.randint(9, (12, 6), generator=g)
        losses = fitted(net, wp.Classify(classes=3), {"x": ids, "y": y})
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("kind", ["real", "token"])
def test_masked_autoencoder_learns(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    visible = visible_places(12, 16, 0.5, g)
    mask = hidden_mask(visible, 16)
    if kind == "real":
        x = patchify(torch.rand(12, 1, 8, 8, generator=g), 2)
        net = seeded(0, masked_autoencoder, 16, 4, size=4, width=16, decoder_width=8)
        task = wp.MaskedModel("real", visible=True)
    else:
        x = torch.randint(9, (12, 16), generator=g)
        net = seeded(0, masked_autoencoder, 16, 9, ids=9, width=16)
        task = wp.MaskedModel("token", classes=9, visible=True)
    losses = fitted(net, task, {"x": x, "y": x, "mask": mask, "visible": visible})
    assert losses[-1] < 0.6 * losses[0]
