"""S-STE."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.parts.masks import nm_mask
from wellposed.sparsity.s_ste import SSTE, mvue24, soft_threshold_nm


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (3, 16)])
@pytest.mark.parametrize(("shape", "dim"), [((3, 16), 1), ((16, 3), 0), ((2, 16, 3, 3), 1)])
def test_value_by_loops(n: int, m: int, shape: tuple[int, ...], dim: int) -> None:
    w = draw(*shape)
    found = soft_threshold_nm(w, n, m, dim).movedim(dim, -1).reshape(-1, m)
    for got, group in zip(found.tolist(), w.movedim(dim, -1).reshape(-1, m).tolist(), strict=True):
        t = sorted(map(abs, group))[m - n - 1]
        assert got == pytest.approx([max(abs(a) - t, 0) * (1 if a > 0 else -1) for a in group], abs=1e-15)


def test_lipschitz_with_the_exact_constant_where_hard_pruning_jumps() -> None:
    """sqrt(1 + n): all n kept entries move one way and the threshold the other, which adds up across the tie."""
    w = torch.tensor([[1.0, 1.0, 0.9, 0.1]], dtype=torch.float64)
    worst = hard = 0.0
    for seed in range(300):
        near = 1e-4 * draw(1, 4, seed=seed)
        base = w if seed % 2 else w.index_fill(1, torch.tensor([2]), 1.0)  # every other time at a tie of three
        moved = base + near
        worst = max(worst, float((soft_threshold_nm(moved) - soft_threshold_nm(base)).norm() / near.norm()))
        jump = moved * nm_mask(moved, 2, 4) - base * nm_mask(base, 2, 4)
        hard = max(hard, float(jump.norm() / near.norm()))
    assert worst <= 3**0.5 + 1e-9
    assert worst > 1.5
    assert hard > 1e3


def by_enumeration(x: list[float]) -> tuple[list[float], list[float]]:
    """Probability that i is drawn, and the second moment of the stand-in, over the twelve ordered pairs."""
    size, total = [abs(a) for a in x], sum(map(abs, x))
    chance = [0.0] * 4
    for i, j in permutations(range(4), 2):
        p = size[i] / total * size[j] / (total - size[i])
        chance[i] += p
        chance[j] += p
    return chance, [a * a / p for a, p in zip(x, chance, strict=True)]


def test_mvue_is_unbiased_with_the_exact_probabilities() -> None:
    x = [0.3, -1.0, 0.7, 0.05]
    chance, second = by_enumeration(x)
    assert sum(chance) == pytest.approx(2)
    draws = mvue24(torch.tensor([x], dtype=torch.float64).repeat(100_000, 1), torch.Generator().manual_seed(0))
    assert ((draws != 0).sum(1) == 2).all()
    for i in range(4):
        [value] = set(draws[:, i].tolist()) - {0.0}
        assert value == pytest.approx(x[i] / chance[i], rel=1e-12)
        spread = (second[i] - x[i] ** 2) ** 0.5 / 100_000**0.5  # standard error of the mean
        assert abs(draws[:, i].mean().item() - x[i]) < 4 * spread


def test_mvue_of_few_entries_is_exact() -> None:
    x = torch.tensor([0.0, 0, 0, 0, 0, 2, 0, 0, 1, 0, -3, 0])
    assert torch.equal(mvue24(x, torch.Generator().manual_seed(0)), x)


def conv() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    ), torch.randn(12, 1, 8, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), torch.randn(12, 5, 8)


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("build", [conv, transformer])
def test_trains_and_leaves_a_sparse_net(build, mode) -> None:  # type: ignore[no-untyped-def]
    model, x = build()
    recipe = wp.Recipe(SSTE(mode=mode)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer)["task"] for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    model.eval()
    before = model(x)
    recipe.detach()
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    sparse = 0
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[1] % 4 == 0:
            groups = torch.unflatten(layer.weight, 1, (-1, 4)).movedim(2, -1)
            assert int((groups != 0).sum(-1).max()) <= 2
            sparse += 1
    assert sparse >= 2


def test_gradient_reaches_the_dense_weight_unchanged() -> None:
    model = nn.Linear(8, 2, bias=False)
    wp.Recipe(SSTE()).attach(model, wp.Classify(classes=2))
    x = torch.randn(5, 8)
    [dense] = model.parameters()
    [grad] = torch.autograd.grad(model(x).sum(), [dense])
    torch.testing.assert_close(grad, x.sum(0).expand(2, 8))


def test_scale_is_the_least_squares_fit_and_frozen() -> None:
    model = nn.Linear(16, 8)
    w = model.weight.detach().clone()
    s = soft_threshold_nm(w)
    wp.Recipe(SSTE()).attach(model, wp.Classify(classes=8))
    torch.testing.assert_close(model.weight.detach(), s * (w * s).sum() / s.square().sum())
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim == 2).mul_(3)
    torch.testing.assert_close(model.weight.detach(), 3 * s * (w * s).sum() / s.square().sum())


def test_refusals_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="n must be below m = 4, got 4"):
        SSTE(n=4)
    with pytest.raises(ValueError, match="'soft' or 'hard', got 'firm'"):
        SSTE(mode="firm")  # type: ignore[arg-type]
    with pytest.raises(wp.RecipeError, match="input dimension 4 divides; change m"):
        wp.Recipe(SSTE()).attach(nn.Linear(6, 2), wp.Classify(classes=2))
    with pytest.raises(wp.RecipeError, match="cannot prune '0' in groups of 4: its input dimension 6"):
        wp.Recipe(SSTE(layers=("0",))).attach(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), wp.Classify(classes=2))


def test_shared_weights_stay_dense() -> None:
    one, two, head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
    two.weight = one.weight
    model = nn.Sequential(one, two, head)
    wp.Recipe(SSTE()).attach(model, wp.Classify(classes=2)).detach()
    assert (one.weight != 0).all()
    assert (head.weight != 0).sum() <= 8
