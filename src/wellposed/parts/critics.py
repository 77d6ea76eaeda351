"""Critics: functions T(x, y) that score pairs, and the scores of pairs that belong together or do not.

A critic is anything callable that takes two batches of n rows and gives n scores, (n,) or (n, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Critic = Callable[[Tensor, Tensor], Tensor]


class JointCritic(nn.Module):
    """T(x, y) = net(x, y side by side), both flattened: sees every interaction, at n^2 passes for all pairs.

    Args:
        net: (n, width of x + width of y) -> (n, 1) or (n,).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, y.dtype)
        found: Tensor = self.net(torch.cat([rows.reshape(len(rows), -1).to(dtype) for rows in (x, y)], 1))
        return found


class SeparableCritic(nn.Module):
    """T(x, y) = <left(x), right(y)>: all n^2 pairs in two passes and one product.

    Args:
        left, right: nets with outputs of one width.
    """

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = (self.left(x) * self.right(y)).sum(-1)
        return found

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """T(x_i, y_j), (n, m)."""
        found: Tensor = self.left(x) @ self.right(y).mT
        return found


def mlp_critic(x_width: int, y_width: int, hidden: Sequence[int] = (64, 64)) -> JointCritic:
    """A joint critic of ReLU layers.

    Args:
        x_width, y_width: numbers of one row of x and of y.
        hidden: widths of the layers between.
    """
    layers: list[nn.Module] = []
    width = x_width + y_width
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return JointCritic(nn.Sequential(*layers, nn.Linear(width, 1)))


# ---- scores
def same_rows(x: Tensor, y: Tensor) -> None:
    """Refuse what is no pairs.

    Raises:
        ValueError: if x and y differ in rows.
    """
    if len(x) != len(y):
        raise ValueError(f"x and y are pairs, row by row; got {len(x)} and {len(y)} rows")


def paired_scores(critic: Critic, x: Tensor, y: Tensor) -> Tensor:
    """T(x_i, y_i), (n,), in at least float32.

    Raises:
        ValueError: if x and y differ in rows, or the critic does not give one score a pair.
    """
    same_rows(x, y)
    scores = critic(x, y)
    if scores.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(f"a critic gives one score a pair, ({len(x)},); got {tuple(scores.shape)}")
    return scores.reshape(-1).to(torch.promote_types(scores.dtype, torch.float32))


def told_apart(
    critic: Critic, x: Tensor, y: Tensor, generator: torch.Generator | None = None, count: int = 1
) -> tuple[Tensor, Tensor]:
    """Scores of the pairs, and of pairs that do not belong together: T(x_i, y_i) and T(x_i, y_j) with j never i.

    From one pass, so that a critic with batch normalisation sees one batch; two would show it by their statistics which
    pairs are which.

    Args:
        critic: of pairs.
        x, y: pairs, row by row; at least 2.
        generator: of the shuffling.
        count: different partners for each row, 1 to n - 1.

    Returns:
        shapes (n,) and (count, n): in column i the scores of row i of x.

    Raises:
        ValueError: for a count there are no partners for.
    """
    same_rows(x, y)
    rows = len(x)
    if not 1 <= count < rows:
        raise ValueError(f"of {rows} pairs each has {max(rows - 1, 0)} other partners; asked for {count}")
    order = torch.randperm(rows, generator=generator, device=generator.device if generator else x.device).to(x.device)
    place = torch.argsort(order)  # the k-th after a row in this order is never that row, 0 < k < n
    partners = torch.cat([order.roll(-k)[place] for k in range(count + 1)])
    both = paired_scores(critic, x.repeat(count + 1, *[1] * (x.ndim - 1)), y[partners]).view(count + 1, rows)
    return both[0], both[1:]


def score_matrix(critic: Critic, x: Tensor, y: Tensor, chunk: int = 65536) -> Tensor:
    """T(x_i, y_j) of all pairs, (n, m), in at least float32.

    By ``critic.matrix(x, y)`` where it has one.

    Args:
        critic: of pairs.
        x, y: n and m rows.
        chunk: pairs of one pass.

    Raises:
        ValueError: if the critic's own matrix has another shape.
    """
    if hasattr(critic, "matrix"):
        scores: Tensor = critic.matrix(x, y)
        if scores.shape != (len(x), len(y)):
            raise ValueError(f"a critic's matrix has the shape ({len(x)}, {len(y)}) here, got {tuple(scores.shape)}")
        return scores.to(torch.promote_types(scores.dtype, torch.float32))
    n, m = len(x), len(y)
    parts = []
    for rows in torch.split(torch.arange(n, device=x.device), max(1, chunk // m)):
        left = x[rows].repeat_interleave(m, 0)
        right = y.repeat(len(rows), *[1] * (y.ndim - 1))
        parts.append(paired_scores(critic, left, right).view(len(rows), m))
    return torch.cat(parts)


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries (n, n - 1) of a square matrix beside its diagonal, row by row."""
    n = len(matrix)
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
