"""Ghost batch normalization, and what goes with large batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.optimizers.ghost_batch_norm import (
    GhostBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    log_fit,
    same_updates,
    scale_lr,
    weight_distance,
)

PAIRS = [
    (nn.BatchNorm1d, GhostBatchNorm1d, (3,)), (nn.BatchNorm1d, GhostBatchNorm1d, (3, 5)),
    (nn.BatchNorm2d, GhostBatchNorm2d, (3, 4, 2)), (nn.BatchNorm3d, GhostBatchNorm3d, (3, 2, 3, 2)),
]  # fmt: skip


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scrambled(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, p in enumerate(norm.parameters()):
            p.copy_(draw(len(p)) + i)
    return norm.double()


@pytest.mark.parametrize(("plain", "ghost", "shape"), PAIRS)
@pytest.mark.parametrize("momentum", [0.1, 0.01])
@pytest.mark.parametrize(("rows", "sizes"), [(12, [4, 4, 4]), (14, [5, 5, 4]), (7, [7]), (3, [3])])
def test_parts_through_one_batch_norm_in_turn(
    plain: type[nn.Module], ghost: type[nn.Module], shape: tuple[int, ...], momentum: float, rows: int, sizes: list[int]
) -> None:
    """Outputs, gradients and running statistics are those of the parts given to BatchNorm one after another."""
    x = draw(rows, *shape).requires_grad_()
    one, other = scrambled(plain(3, momentum=momentum)), scrambled(ghost(3, 4, momentum=momentum))
    expected, found = torch.cat([one(part) for part in torch.split(x, sizes)]), other(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad((expected * draw(*x.shape)).sum(), [x, *one.parameters()])
    for a, b in zip(torch.autograd.grad((found * draw(*x.shape)).sum(), [x, *other.parameters()]), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(other.get_buffer(name), one.get_buffer(name), rtol=1e-12, atol=1e-12)
    assert other.get_buffer("num_batches_tracked") == 1
    one.eval(), other.eval()
    torch.testing.assert_close(other(x), one(x), rtol=1e-12, atol=1e-12)


def test_one_ghost_is_batch_norm_to_the_bit() -> None:
    x = draw(12, 3).float()
    one, other = nn.BatchNorm1d(3), GhostBatchNorm1d(3, ghost_size=12)
    assert torch.equal(one(x), other(x))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_gradient() -> None:
    norm = scrambled(GhostBatchNorm1d(2, ghost_size=3))
    assert torch.autograd.gradcheck(norm, draw(7, 2).requires_grad_())


def test_average_over_updates_without_momentum_and_no_statistics() -> None:
    averaged = GhostBatchNorm1d(2, ghost_size=2, momentum=None).double()
    batches = draw(3, 8, 2)
    for x in batches:
        averaged(x)
    torch.testing.assert_close(averaged.running_mean, batches.mean((0, 1)))
    bare = GhostBatchNorm1d(2, ghost_size=2, affine=False, track_running_stats=False)
    out = bare(batches[0].float()).view(4, 2, 2)
    torch.testing.assert_close(out.mean(1), torch.zeros(4, 2), rtol=0, atol=1e-6)


def test_half_precision() -> None:
    norm = GhostBatchNorm2d(3, ghost_size=4)
    out = norm(draw(8, 3, 4, 4).bfloat16())
    assert out.dtype == torch.bfloat16
    assert norm.running_mean is not None
    assert norm.running_mean.dtype == torch.float32


def test_method_changes_batch_norm_layers_and_puts_them_back() -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    batch = {"x": draw(16, 1, 8, 8).float(), "y": torch.arange(16) % 3}
    model, by_hand = build(), build()
    by_hand[1] = GhostBatchNorm2d(4, ghost_size=4)
    recipe = wp.Recipe(GhostBatchNorm(ghost_size=4)).attach(model, wp.Classify(classes=3))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, by_hand)]
    for _ in range(4):
        recipe.step(batch, optimizers[0])
        optimizers[1].zero_grad()
        loss = nn.functional.cross_entropy(by_hand(batch["x"]), batch["y"])
        torch.autograd.backward(loss)
        optimizers[1].step()
    for (name, a), b in zip(model.state_dict().items(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    recipe.detach()
    assert type(model[1]) is nn.BatchNorm2d
    assert not hasattr(model[1], "ghost_size")


def test_model_without_batch_norm_is_refused() -> None:
    with pytest.raises(wp.RecipeError, match=r"acts on nn.BatchNorm layers, and the model has none"):
        wp.Recipe(GhostBatchNorm()).attach(nn.Linear(3, 3), wp.Classify(classes=3))


def test_rates_and_epochs() -> None:
    assert scale_lr(0.1, 32, 512) == pytest.approx(0.4)
    assert scale_lr(0.1, 32, 512, "linear") == pytest.approx(1.6)
    assert same_updates(20, 32, 512) == 320
    assert same_updates(1, 3, 4) == 2
    with pytest.raises(ValueError, match=r"a rule 'sqrt' or 'linear', got 0.1, 32, 64, 'cubic'"):
        scale_lr(0.1, 32, 64, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive numbers, got 20, 0 and 64"):
        same_updates(20, 0, 64)


def test_square_root_rule_keeps_the_covariance_of_a_step() -> None:
    """cov(lr mean of B gradients) = lr^2 C / B."""
    gradients = draw(40_000).view(100, 400)
    spread = [(scale_lr(0.1, 10, b) * gradients.reshape(-1, b).mean(1)).var() for b in (10, 40)]
    assert float(spread[0] / spread[1]) == pytest.approx(1, rel=4 * math.sqrt(2 / 4000 + 2 / 1000))


def test_distance_and_its_logarithmic_growth() -> None:
    start = [draw(3, 2), draw(4)]
    moved = [start[0] + 3, start[1] - 1]
    assert weight_distance(moved, start).item() == pytest.approx(math.sqrt(6 * 9 + 4))
    times = [1.0, 2.0, 5.0, 50.0]
    slope, share = log_fit(times, [2 + 0.3 * math.log(t) for t in times])
    assert (slope, share) == pytest.approx((0.3, 1.0))
    assert log_fit(times, times)[1] < 0.9
    with pytest.raises(ValueError, match="three different times"):
        log_fit([1, 1, 2], [0, 1, 2])
