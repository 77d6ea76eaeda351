"""Adversarial training: losses against their definitions, and what one player's update leaves alone of the other."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ranks import on_two_ranks
from wellposed import Recipe
from wellposed.tasks.adversarial import Discriminate, Game, Generate, discriminator_loss, generator_loss

GAMES: list[Game] = ["relativistic", "non-saturating", "hinge", "least-squares"]


def published(game: Game, r: float, f: float) -> tuple[float, float]:
    """Losses of discriminator and generator for one pair of logits."""

    def log_sigmoid(v: float) -> float:
        return -math.log(1 + math.exp(-v))

    return {
        "relativistic": (-log_sigmoid(r - f), -log_sigmoid(f - r)),
        "non-saturating": (-log_sigmoid(r) - math.log(1 - 1 / (1 + math.exp(-f))), -log_sigmoid(f)),
        "hinge": (max(0, 1 - r) + max(0, 1 + f), -f),
        "least-squares": (((r - 1) ** 2 + f**2) / 2, (f - 1) ** 2 / 2),
    }[game]


@pytest.mark.parametrize("game", GAMES)
def test_losses_are_the_papers(game: Game) -> None:
    real, fake = torch.randn(2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    for r, f, d, g in zip(
        real, fake, discriminator_loss(real, fake, game), generator_loss(real, fake, game), strict=True
    ):
        assert (d.item(), g.item()) == pytest.approx(published(game, r.item(), f.item()), rel=1e-12)
    huge = torch.tensor([1e4, -1e4])
    assert discriminator_loss(huge, -huge, game).isfinite().all()


class Maker(nn.Module):
    """Images (B, 1, 4, 4) from z (B, 3), with BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).view(-1, 1, 4, 4)


class Judge(nn.Module):
    """A patchwise judgement (B, 1, 2, 2), with BatchNorm, spectral norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 8, 3, 1, 1, bias=False))
        self.net = nn.Sequential(first, nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Conv2d(8, 1, 3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def players() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return Maker(), Judge()


def batch_of(rows: int = 8, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(rows, 1, 4, 4, generator=g), "z": torch.randn(rows, 3, generator=g)}


@pytest.mark.parametrize("side", ["discriminate", "generate"])
@pytest.mark.parametrize("split", [1, 2])
def test_the_other_player_is_left_alone(side: str, split: int) -> None:
    """Weights, gradients, running statistics, power iterations, modes and flags, also of what is frozen."""
    maker, judge = players()
    judge.net[4].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    own, other = (judge, maker) if side == "discriminate" else (maker, judge)
    other.net[1].eval()  # type: ignore[index, union-attr]
    for p in other.parameters():
        p.grad = torch.full_like(p, 7.0)
    kept = copy.deepcopy(other)
    flags = [p.requires_grad for p in other.parameters()]
    own_before = copy.deepcopy(own.state_dict())
    recipe = Recipe().attach(own, Discriminate(maker) if side == "discriminate" else Generate(judge))
    batch = batch_of()
    parts = [
        dict(zip(batch, rows, strict=True)) for rows in zip(*(v.chunk(split) for v in batch.values()), strict=True)
    ]
    recipe.step(parts, torch.optim.SGD([p for p in own.parameters() if p.requires_grad], lr=0.1))
    for (name, now), then in zip(other.state_dict().items(), kept.state_dict().values(), strict=True):
        assert torch.equal(now, then), name
    assert all(p.grad is not None and (p.grad == 7).all() for p in other.parameters())
    assert [p.requires_grad for p in other.parameters()] == flags
    assert [m.training for m in other.modules()] == [m.training for m in kept.modules()]
    changed = {k for k, v in own.state_dict().items() if not torch.equal(v, own_before[k])}
    frozen = {"net.4.bias"} if side == "discriminate" else set()
    assert {k for k, _ in own.named_parameters()} - changed == frozen


def test_gradients_by_hand() -> None:
    """One pass of both players, differentiated by the generator's weights and by the discriminator's."""
    torch.manual_seed(0)
    maker, judge = nn.Linear(3, 2).double(), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    batch = {"x": torch.randn(6, 2).double(), "z": torch.randn(6, 3).double()}
    difference = (judge(batch["x"]) - judge(maker(batch["z"]))).squeeze(1)
    to_judge = torch.autograd.grad((1 + (-difference).exp()).log().mean(), list(judge.parameters()), retain_graph=True)
    to_maker = torch.autograd.grad((1 + difference.exp()).log().mean(), list(maker.parameters()))
    for own, task, wanted in ((judge, Discriminate(maker), to_judge), (maker, Generate(judge), to_maker)):
        Recipe().attach(own, task).step(batch, torch.optim.SGD(own.parameters(), lr=0.0))
        for p, g in zip(own.parameters(), wanted, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-15)


def test_resume_is_bit_exact_for_both_players() -> None:
    """With dropout in both: the masks are functions of seed and step."""

    class Game_:
        def __init__(self) -> None:
            self.maker, self.judge = players()
            self.judging = Recipe(seed=1).attach(self.judge, Discriminate(self.maker, "hinge"))
            self.making = Recipe(seed=2).attach(self.maker, Generate(self.judge, "hinge"))
            self.optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (self.judge, self.maker)]

        def parts(self) -> list[Any]:
            return [self.maker, self.judge, self.judging, self.making, *self.optimizers]

        def run(self, start: int, end: int) -> None:
            for i in range(start, end):
                self.judging.step(batch_of(seed=2 * i), self.optimizers[0])
                self.making.step(batch_of(seed=2 * i + 1), self.optimizers[1])
                torch.randn(i + 1)  # somebody else draws

    straight, first, second = Game_(), Game_(), Game_()
    straight.run(0, 4)
    first.run(0, 2)
    file = io.BytesIO()
    torch.save([p.state_dict() for p in first.parts()], file)
    file.seek(0)
    for part, state in zip(second.parts(), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    torch.manual_seed(99)
    second.run(2, 4)
    for a, b in ((straight.maker, second.maker), (straight.judge, second.judge)):
        for (name, one), two in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(one, two), name


@pytest.mark.parametrize("game", GAMES)
def test_the_generator_finds_the_mean(game: Game) -> None:
    """A linear critic of N(0, 1) against N(theta, 1), and a weight decay that damps the rotation: theta goes to 0."""
    torch.manual_seed(0)
    judge = nn.Linear(1, 1)

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.full((1,), 2.0))

        def forward(self, z: Tensor) -> Tensor:
            return z + self.by

    maker = Shift()
    judging, making = Recipe().attach(judge, Discriminate(maker, game)), Recipe().attach(maker, Generate(judge, game))
    for_judge = torch.optim.SGD(judge.parameters(), lr=0.2, weight_decay=0.1)
    for_maker = torch.optim.SGD(maker.parameters(), lr=0.2)
    g, path = torch.Generator().manual_seed(0), []
    for _ in range(400):
        z = torch.randn(2, 64, 1, generator=g)
        batch = {"x": z[0], "z": z[1]}
        judging.step(batch, for_judge)
        making.step(batch, for_maker)
        path.append(maker.by.item())
    assert abs(sum(path[-100:]) / 100) < 0.2


def test_a_condition_reaches_both_players_in_the_right_order() -> None:
    class Conditional(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.net, self.seen = nn.Linear(inputs, outputs), torch.empty(0)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            self.seen = y
            return self.net(torch.cat([x, y[:, None]], 1))

    maker, judge = Conditional(4, 2), Conditional(3, 1)
    y = torch.arange(5.0)
    batch = {"x": torch.randn(5, 2), "z": torch.randn(5, 3), "y": y}
    for task, own in ((Discriminate(maker, condition="y"), judge), (Generate(judge, condition="y"), maker)):
        assert task.reads == ("x", "z", "y")
        Recipe().attach(own, task, example=batch).step(batch, torch.optim.SGD(own.parameters(), lr=0.1))
        assert torch.equal(maker.seen, y)
        assert torch.equal(judge.seen, torch.cat([y, y]))


def test_a_game_of_ones_own_and_bfloat16_autocast() -> None:
    def wasserstein(real: Tensor, fake: Tensor) -> Tensor:
        return fake - real

    maker, judge = players()
    task = Discriminate(maker, wasserstein)
    out = task.forward(judge, batch_of())
    torch.testing.assert_close(task.loss(out, {}), (out["fake"] - out["real"]).flatten(1).mean(1))
    assert repr(task) == "Discriminate(Maker, wasserstein)"
    assert repr(Generate(judge)) == "Generate(Judge, 'relativistic')"
    for own, side in ((judge, Discriminate(maker)), (maker, Generate(judge))):
        recipe = Recipe().attach(own, side, autocast=torch.bfloat16)
        terms = recipe.step(batch_of(), torch.optim.SGD(own.parameters(), lr=0.1))
        assert terms["total"].isfinite()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="Discriminate: loss must be a function or one of relativistic"):
        Discriminate(nn.Identity(), "wgan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Generate: loss must be"):
        Generate(nn.Identity(), "wgan")  # type: ignore[arg-type]
    for task, own in ((Discriminate(nn.Linear(3, 1)), nn.Linear(2, 1)), (Generate(nn.Linear(2, 1)), nn.Linear(3, 1))):
        with pytest.raises(ValueError, match=r"generated samples have shape \(4, 1\), the real ones \(4, 2\)"):
            task.forward(own, {"x": torch.randn(4, 2), "z": torch.randn(4, 3)})


# ---- two ranks
def played(batch: dict[str, Tensor], parallel: bool) -> Tensor:
    """Weights of both players after two updates each; each sees the other as its own training wraps it."""
    torch.manual_seed(0)
    maker = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    judge = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    players = [DistributedDataParallel(m) if parallel else m for m in (judge, maker)]
    judging = Recipe().attach(players[0], Discriminate(players[1]))
    making = Recipe().attach(players[1], Generate(players[0]))
    for _ in range(2):
        for recipe, model in ((judging, judge), (making, maker)):
            recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.5))
    return torch.cat([p.detach().flatten() for m in (judge, maker) for p in m.parameters()])


def pairs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {k: torch.randn(8, d, generator=g, dtype=torch.float64) for k, d in (("x", 2), ("z", 3))}


def worker(rank: int, file: str) -> None:
    found = played({k: v.chunk(2)[rank] for k, v in pairs().items()}, parallel=True)
    if rank == 0:
        torch.save(found, file)


@pytest.mark.slow
def test_two_ranks_play_as_one_process(tmp_path: Path) -> None:
    on_two_ranks(worker, str(tmp_path / "weights.pt"))
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.testing.assert_close(found, played(pairs(), parallel=False), rtol=0, atol=1e-12)
