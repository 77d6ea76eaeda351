"""Zero-centred gradient penalties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.generative.r3gan import ZeroCenteredPenalty, squared_slope


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_squared_slope_of_a_quadratic() -> None:
    """D(x) = x'Ax + b'x has the gradient (A + A')x + b; two sets of samples add up place by place."""
    a, b = draw(3, 3), draw(3, seed=1)
    x, y = draw(5, 3, seed=2).requires_grad_(), draw(5, 3, seed=3).requires_grad_()

    def judge(v: Tensor) -> Tensor:
        return (v @ a * v).sum(1) + v @ b

    def wanted(v: Tensor) -> Tensor:
        return (v @ (a + a.T) + b).square().sum(1)

    torch.testing.assert_close(squared_slope(judge(x), x), wanted(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(squared_slope(judge(x) + judge(y), x, y), wanted(x) + wanted(y), rtol=1e-12, atol=0)


def test_differentiates_exactly() -> None:
    w, x = draw(4, 3).requires_grad_(), draw(5, 3, seed=1)

    def penalty(w: Tensor, x: Tensor) -> Tensor:
        return squared_slope(torch.tanh(x @ w.T).square().sum(1), x)

    assert torch.autograd.gradcheck(penalty, (w, x.requires_grad_()))


class Conv(nn.Module):
    """A discriminator of patches, with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Conv2d(4, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Attention(nn.Module):
    """One logit from rows of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(6, 2, 12, 0.1, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x.squeeze(1)).mean(1))


class Maker(nn.Module):
    """Its samples change at every call, so a second call would show."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = nn.Linear(3, 36), 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return self.net(z).view(-1, 1, 6, 6)


@pytest.mark.parametrize("on", ["both", "real", "fake"])
@pytest.mark.parametrize("build", [Conv, Attention])
def test_the_penalty_is_of_the_very_samples_of_the_loss(build: type[nn.Module], on: str) -> None:
    """Against gradients sample by sample by hand (as a batch where BatchNorm couples them)."""
    torch.manual_seed(0)
    maker, judge = Maker().double(), build().double()
    for m in judge.modules():
        if isinstance(m, nn.Dropout | nn.MultiheadAttention):
            m.p = m.dropout = 0.0
    x, z = draw(4, 1, 6, 6), draw(4, 3, seed=1)
    both = torch.cat([x, maker(z).detach()]).requires_grad_()
    logits = judge(both).flatten(1).sum(1)
    count = {"both": slice(0, 8), "real": slice(0, 4), "fake": slice(4, 8)}[on]
    (slope,) = torch.autograd.grad(logits[count].sum(), both)
    wanted = 0.7 / 2 * slope[count].square().sum() / 4
    maker.calls = 0
    recipe = wp.Recipe(ZeroCenteredPenalty(on=on, strength=0.7)).attach(judge, wp.Discriminate(maker))  # type: ignore[arg-type]
    terms = recipe.step({"x": x, "z": z}, torch.optim.SGD(judge.parameters(), lr=0.0))
    assert terms["ZeroCenteredPenalty"].item() == pytest.approx(wanted.item(), rel=1e-9)
    assert maker.calls == 1
    assert all(p.grad is None for p in maker.parameters())


def test_flattens_the_discriminator() -> None:
    slopes = []
    x, z = draw(32, 2).float(), draw(32, 3, seed=1).float()
    for strength in (0.0, 1.0):
        torch.manual_seed(0)
        judge, maker = nn.Sequential(nn.Linear(2, 32), nn.Softplus(), nn.Linear(32, 1)), nn.Linear(3, 2)
        recipe = wp.Recipe(ZeroCenteredPenalty(strength=strength)).attach(judge, wp.Discriminate(maker))
        optimizer = torch.optim.Adam(judge.parameters(), lr=0.01)
        for _ in range(200):
            recipe.step({"x": 1 + x, "z": z}, optimizer)
        at = (1 + x).requires_grad_()
        slopes.append(squared_slope(judge(at), at).mean().item())
    assert slopes[1] < 0.2 * slopes[0]


def test_stays_out_of_autocast() -> None:
    torch.manual_seed(0)
    judge, maker = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)), nn.Linear(3, 2)
    x, z = draw(16, 2).float(), draw(16, 3, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        fakes = maker(z).float().detach().requires_grad_()
    at = x.clone().requires_grad_()
    exact = squared_slope(judge(at) + judge(fakes), at, fakes).mean() / 2
    recipe = wp.Recipe(ZeroCenteredPenalty()).attach(judge, wp.Discriminate(maker), autocast=torch.bfloat16)
    terms = recipe.step({"x": x, "z": z}, torch.optim.SGD(judge.parameters(), lr=0.0))
    torch.testing.assert_close(terms["ZeroCenteredPenalty"], exact.detach(), rtol=1e-5, atol=0)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="on must be 'both', 'real' or 'fake', got 'none'"):
        ZeroCenteredPenalty(on="none")  # type: ignore[arg-type]
    with pytest.raises(wp.RecipeError, match="ZeroCenteredPenalty needs 'fake'"):
        wp.Recipe(ZeroCenteredPenalty()).attach(nn.Linear(2, 2), wp.Classify())
    judge = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 1))
    maker = nn.Identity()
    recipe = wp.Recipe(ZeroCenteredPenalty()).attach(judge, wp.Discriminate(maker))
    with pytest.raises(TypeError, match=r"they are torch\.int64"):
        recipe.step(
            {"x": torch.randint(5, (4, 2)), "z": torch.randint(5, (4, 2))}, torch.optim.SGD(judge.parameters(), lr=0.1)
        )


def test_a_generator_is_not_penalised() -> None:
    with pytest.raises(wp.RecipeError, match="put it into the recipe of Discriminate"):
        wp.Recipe(ZeroCenteredPenalty()).attach(nn.Linear(3, 2), wp.Generate(nn.Linear(2, 1)))
