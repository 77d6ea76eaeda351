"""Critics and their scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wellposed.parts import critics as c


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(x: Tensor, y: Tensor) -> Tensor:
    return (x.flatten(1) * y.flatten(1)).sum(1)


def test_all_pairs_one_by_one() -> None:
    x, y = rand(5, 3), rand(4, 3, seed=1)
    separable = c.SeparableCritic(nn.Linear(3, 2), nn.Linear(3, 2)).double()
    joint = c.mlp_critic(3, 3, (8,)).double()
    for critic in (separable, joint, product):
        expected = torch.tensor([[critic(x[i : i + 1], y[j : j + 1]).item() for j in range(4)] for i in range(5)])
        for chunk in (1, 8, 100):
            torch.testing.assert_close(c.score_matrix(critic, x, y, chunk), expected.double(), rtol=1e-6, atol=1e-6)


def test_any_shape_of_rows() -> None:
    x, y = rand(4, 1, 2, 3), rand(4, 6, seed=1).float()
    scores = c.score_matrix(c.mlp_critic(6, 6).double(), x, y)
    assert scores.shape == (4, 4)
    torch.testing.assert_close(c.score_matrix(product, x, y), x.flatten(1) @ y.double().T)


def test_shuffled_pairs_never_belong_together_and_never_repeat() -> None:
    n = 7
    rows = torch.arange(n)
    own, partners = c.told_apart(lambda x, y: (100 * x + y).float(), rows, rows, torch.Generator(), count=n - 1)
    assert torch.equal(own, 101.0 * rows)
    assert (partners // 100 == rows).all()
    for i in range(n):
        assert sorted(int(p) % 100 for p in partners[:, i]) == [j for j in range(n) if j != i]


def test_every_partner_is_equally_likely() -> None:
    g, rows, draws = torch.Generator().manual_seed(0), torch.arange(4), 3000
    seen = torch.stack([c.told_apart(lambda x, y: y.float(), rows, rows, g)[1][0] for _ in range(draws)])
    for i in range(4):
        shares = [(seen[:, i] == j).double().mean().item() for j in range(4) if j != i]
        assert shares == pytest.approx([1 / 3] * 3, abs=5 * (2 / 9 / draws) ** 0.5)


def test_off_diagonal() -> None:
    matrix = rand(4, 4)
    expected = torch.stack([torch.cat([matrix[i, :i], matrix[i, i + 1 :]]) for i in range(4)])
    assert torch.equal(c.off_diagonal(matrix), expected)


def test_low_precision_scores_are_widened() -> None:
    x = rand(4, 3).bfloat16()
    critic = c.mlp_critic(3, 3).bfloat16()
    assert c.paired_scores(critic, x, x).dtype == torch.float32
    assert c.score_matrix(critic, x, x).dtype == torch.float32


def test_bad_input() -> None:
    x = rand(4, 3)
    with pytest.raises(ValueError, match="pairs, row by row; got 4 and 3 rows"):
        c.paired_scores(product, x, x[:3])
    narrow = c.SeparableCritic(nn.Linear(3, 2), nn.Linear(3, 2)).double()
    narrow.matrix = lambda x, y: rand(4, 3)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"the shape \(4, 4\) here, got \(4, 3\)"):
        c.score_matrix(narrow, x, x)
    with pytest.raises(ValueError, match=r"one score a pair, \(4,\); got \(4, 3\)"):
        c.paired_scores(lambda x, y: x * y, x, x)
    with pytest.raises(ValueError, match="of 4 pairs each has 3 other partners; asked for 4"):
        c.told_apart(product, x, x, count=4)
    with pytest.raises(ValueError, match="pairs, row by row; got 4 and 3 rows"):
        c.told_apart(product, x, x[:3])
