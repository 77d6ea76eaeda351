"""Two processes over gloo: many methods at once, memory per example, coupled terms, uneven windows."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from core_methods import (
    CLASSES,
    Activity,
    Average,
    ClipNorm,
    Consistency,
    Spread,
    SquaredWeights,
    TimesLoss,
    data,
    net,
    parts_of,
    sgd,
    weights,
)  # fmt: skip
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

import wellposed as wp
from ranks import on_two_ranks

STEPS = 3


def many() -> list[wp.Method]:
    elr = wp.ELR(rows=12, classes=CLASSES)
    return [elr, TimesLoss(), SquaredWeights(), Activity(), wp.SAM(rho=0.1), ClipNorm(norm=0.5), Average()]


def rows_of(index: list[int]) -> dict[str, torch.Tensor]:
    return {k: v[index] for k, v in data().items()}


def text() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    y = torch.randint(0, 9, (8, 5), generator=g)
    for row, real in enumerate([5, 1, 3, 2, 4, 5, 2, 0]):
        y[row, real:] = -100
    return {"x": torch.randint(0, 9, (8, 5), generator=g), "y": y}


def writer() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9)).double()


class TokenActivity(wp.Method):
    """A per-token quantity averaged over the real tokens of each text."""

    targets = frozenset({"token"})
    strength: float = wp.knob(0.3)

    def penalty(self, step: wp.Step) -> torch.Tensor:
        return step.task.reduce(step.out["logits"].square().mean(-1), step.batch)


def train(recipe: wp.Recipe, model: nn.Module, windows) -> nn.Module:
    optimizer = sgd(model)
    for window in windows:
        recipe.step(window, optimizer)
    return model


def many_together(rank: int | None) -> dict[str, torch.Tensor]:
    model = net()
    recipe = wp.Recipe(*many()).attach(model, wp.Classify(CLASSES))
    window = parts_of(data(), 6, 6)
    if rank is not None:
        recipe.through(DistributedDataParallel(model))
        window = [{k: v.chunk(2)[rank] for k, v in part.items()} for part in window]
    train(recipe, model, [window] * STEPS)
    return {"weights": weights(model), **{k: v.double() for k, v in recipe.state_dict().items()}}


def shuffled_memory(rank: int | None) -> dict[str, torch.Tensor]:
    """ELR's table when each epoch shows an example to another rank."""
    model = net()
    recipe = wp.Recipe(wp.ELR(rows=12, classes=CLASSES)).attach(model, wp.Classify(CLASSES))
    samplers = [DistributedSampler(range(12), 2, r, shuffle=True, seed=4) for r in (0, 1)]
    if rank is not None:
        recipe.through(DistributedDataParallel(model))
    optimizer = sgd(model)
    for epoch in range(4):
        for s in samplers:
            s.set_epoch(epoch)
        shares = [list(s) for s in samplers]
        for at in range(0, 6, 3):
            both = [share[at : at + 3] for share in shares]
            recipe.step(rows_of(both[0] + both[1] if rank is None else both[rank]), optimizer)
    return {"weights": weights(model), "memory": recipe.methods[0].memory.values.double()}


def coupled(rank: int | None) -> dict[str, torch.Tensor]:
    model = net()
    recipe = wp.Recipe(Spread(), wp.SAM()).attach(model, wp.Classify(CLASSES))
    batch = data()
    if rank is not None:
        recipe.through(DistributedDataParallel(model))
        batch = {k: v.chunk(2)[rank] for k, v in batch.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(recipe, model, [batch] * STEPS)
    return {"weights": weights(model)}


def uneven(rank: int | None) -> dict[str, torch.Tensor]:
    """Ranks and microbatches of different sizes."""
    model = net()
    recipe = wp.Recipe(Activity(), SquaredWeights(), TimesLoss()).attach(model, wp.Classify(CLASSES))
    window = parts_of(data(), 2, 1, 4, 5)
    if rank is not None:
        recipe.through(DistributedDataParallel(model))
        window = [window[:2], window[2:]][rank]
    return {"weights": weights(train(recipe, model, [window] * STEPS))}


def tokens(rank: int | None) -> dict[str, torch.Tensor]:
    """Every real token of the update counts the same, wherever it landed."""
    model = writer()
    recipe = wp.Recipe(TokenActivity(), SquaredWeights()).attach(model, wp.NextToken(9))
    window = parts_of(text(), 1, 3, 2, 2)
    if rank is not None:
        recipe.through(DistributedDataParallel(model))
        window = [window[:2], window[2:]][rank]
    return {"weights": weights(train(recipe, model, [window] * STEPS))}


def noise(rank: int | None) -> dict[str, torch.Tensor]:
    """Drawn noise differs between the ranks, dropout too; the weights stay together."""
    model = net(dropout=0.5)
    recipe = wp.Recipe(Consistency(), wp.SAM()).attach(model, wp.Classify(CLASSES))
    if rank is not None:
        recipe.through(DistributedDataParallel(model))
    step = wp.Step(recipe, None, None)
    draws = [torch.rand(3, generator=step.rng(recipe.methods[0], shared=shared)) for shared in (False, True)]
    train(recipe, model, [data()] * STEPS)
    return {"weights": weights(model), "own": draws[0], "shared": draws[1]}


CASES = [many_together, shuffled_memory, coupled, uneven, tokens, noise]


def worker(rank: int, folder: str) -> None:
    for case in CASES:
        torch.save(case(rank), Path(folder) / f"{case.__name__}.{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(worker, str(folder))
    return lambda case: [torch.load(folder / f"{case.__name__}.{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.mark.parametrize("case", [many_together, shuffled_memory, coupled, uneven, tokens], ids=lambda c: c.__name__)
def test_two_ranks_equal_one_process(case, ranks) -> None:
    first, second = ranks(case)
    alone = case(None)
    assert first.keys() == second.keys() == alone.keys()
    for k, v in alone.items():
        assert torch.equal(first[k], second[k]), f"{k} differs between the ranks"
        assert torch.allclose(first[k], v, rtol=0, atol=1e-12), k


def test_noise_of_two_ranks(ranks) -> None:
    first, second = ranks(noise)
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["own"], second["own"])
    assert torch.equal(first["shared"], second["shared"])


# ---- the same weighting in one process
@pytest.mark.parametrize("sizes", [(1, 3, 2, 2), (4, 4), (7, 1), (1,) * 8])
def test_token_weighted_microbatches_equal_the_large_batch(sizes: tuple[int, ...]) -> None:
    """(7, 1) and (1,) * 8 end in a microbatch of padding only."""
    results = []
    for window in (text(), parts_of(text(), *sizes)):
        model = writer()
        recipe = wp.Recipe(TokenActivity(), SquaredWeights(), wp.SAM(rho=0.1)).attach(model, wp.NextToken(9))
        results.append(weights(train(recipe, model, [window] * STEPS)))
    assert torch.allclose(*results, rtol=0, atol=1e-13)


def test_a_window_of_nothing_but_padding_moves_only_what_penalties_move() -> None:
    empty = {**text(), "y": torch.full((8, 5), -100)}
    for window in (empty, parts_of(empty, 4, 4)):
        model = writer()
        recipe = wp.Recipe(TokenActivity()).attach(model, wp.NextToken(9))
        terms = recipe.step(window, sgd(model))
        assert {k: float(v) for k, v in terms.items()} == {"task": 0.0, "TokenActivity": 0.0, "total": 0.0}
        assert torch.equal(weights(model), weights(writer()))
