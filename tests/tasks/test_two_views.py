"""Two views: NT-Xent against explicit loops, one pass for both views, two ranks against one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ranks import on_two_ranks
from wellposed import Recipe
from wellposed.tasks import TwoViews, nt_xent


def explicit(z1: Tensor, z2: Tensor, temperature: float) -> list[float]:
    """Eq. 1 of SimCLR, one pair at a time."""
    z, n = torch.cat([z1, z2]), len(z1)

    def similarity(i: int, j: int) -> Tensor:
        return torch.exp(z[i] @ z[j] / (z[i].norm() * z[j].norm()) / temperature)

    def one(i: int, j: int) -> float:
        rest = sum(similarity(i, k) for k in range(2 * n) if k != i)
        return float(-torch.log(similarity(i, j) / rest))

    return [(one(i, i + n) + one(i + n, i)) / 2 for i in range(n)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_papers(temperature: float) -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    expected = torch.tensor(explicit(z1, z2, temperature), dtype=torch.float64)
    torch.testing.assert_close(nt_xent(z1, z2, temperature), expected)


def test_gradient() -> None:
    torch.manual_seed(0)
    z = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(nt_xent, tuple(z))


def test_lengths_of_representations_do_not_matter() -> None:
    z1, z2 = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    torch.testing.assert_close(nt_xent(3 * z1, z2), nt_xent(z1, z2))


def test_both_views_go_through_the_model_at_once() -> None:
    calls = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return x

    x1, x2 = torch.randn(4, 3), torch.randn(4, 3)
    out = TwoViews().forward(Spy(), {"x1": x1, "x2": x2})
    assert calls == [8]
    assert torch.equal(out["z1"], x1)
    assert torch.equal(out["z2"], x2)


def test_a_scalar_criterion_stands_for_every_sample() -> None:
    z1, z2 = torch.randn(4, 3), torch.randn(4, 3)
    found = TwoViews(lambda a, b: (a - b).square().mean()).loss({"z1": z1, "z2": z2}, {})
    torch.testing.assert_close(found, (z1 - z2).square().mean().expand(4))


def test_training_keeps_what_the_views_share_and_drops_the_rest() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    recipe = Recipe().attach(model, TwoViews(partial(nt_xent, temperature=0.2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        shared = torch.randn(64, 2)
        views = [torch.cat([shared, 2 * torch.randn(64, 6)], 1) for _ in range(2)]
        recipe.step({"x1": views[0], "x2": views[1]}, optimizer)
    w = model.weight.detach()
    assert w[:, :2].norm() > 0.99 * w.norm()


def problem() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, {"x1": torch.randn(8, 6).double(), "x2": torch.randn(8, 6).double()}


def trained(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    recipe = Recipe().attach(model, TwoViews())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        recipe.step(batch, optimizer)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def worker(rank: int, file: str) -> None:
    model, batch = problem()
    found = trained(DistributedDataParallel(model), {k: v.chunk(2)[rank] for k, v in batch.items()})
    if rank == 0:
        torch.save(found, file)


@pytest.mark.slow
def test_two_ranks_contrast_with_the_samples_of_both(tmp_path: Path) -> None:
    on_two_ranks(worker, str(tmp_path / "weights.pt"))
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.testing.assert_close(found, trained(*problem()), rtol=0, atol=1e-12)
