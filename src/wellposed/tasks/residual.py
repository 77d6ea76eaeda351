"""Residuals: a network that solves a differential equation (PINN)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task

Equation = Callable[[nn.Module, Tensor], Tensor]


def laplacian(u: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Sum of the second derivatives of ``u`` at ``x``, differentiable once more.

    Args:
        u: (B, d) -> (B,) or (B, 1), each value depending on its own row only.
        x: points (B, d) that require a gradient.

    Returns:
        shape (B,).
    """
    (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
    second = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])]
    return torch.stack(second).sum(0)


class Residual(Task):
    """Squared residual of an equation at points, plus squared boundary conditions.

    ``batch["x"]`` (B, d) are points inside the domain. Each entry of ``boundary`` has points of its own, in the batch
    under its name, shape (N, d). A sample's loss is residual^2 + sum of weight * mean(condition^2); microbatches
    equal the large batch where the boundary points are split in the same proportion as the inner ones.

    Points require a gradient when the functions see them, so derivatives come from ``torch.autograd.grad`` with
    ``create_graph=True``, or from ``laplacian``. Leave such a model uncompiled: ``torch.compile`` cannot differentiate
    twice.
    Raissi, Perdikaris, Karniadakis 2017, Physics Informed Deep Learning (Part I), arXiv 1711.10561, Eq. 4.

    Args:
        residual: ``(model, x) -> (B,)``, zero where the equation holds.
        boundary: name -> (``(model, points) -> (N,)``, weight).

    Raises:
        ValueError: if a boundary takes the name of the inner points or residuals, if its weight is negative, or if a
            function does not return one value per point.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> def poisson(u, x):                                   # -u'' = 1 on (0, 1)
        ...     return -laplacian(u, x) - 1
        >>> def edge(u, x):                                      # u = 0 at the ends
        ...     return u(x).squeeze(-1)
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> recipe = Recipe().attach(model, Residual(poisson, {"edge": (edge, 10.0)}))
        >>> batch = {"x": torch.rand(16, 1), "edge": torch.tensor([[0.0], [1.0]])}
        >>> sorted(recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.01)))
        ['task', 'total']
    """

    def __init__(self, residual: Equation, boundary: Mapping[str, tuple[Equation, float]] | None = None) -> None:
        self.residual, self.boundary = residual, dict(boundary or {})
        for name, (_, weight) in self.boundary.items():
            if name in ("x", "residual"):
                raise ValueError(f"Residual: the boundary '{name}' needs another name; that one is taken")
            if not weight >= 0:
                raise ValueError(f"Residual: the weight of '{name}' must be at least 0, got {weight}")
        self.reads = ("x", *self.boundary)
        self.yields = ("residual", *self.boundary)

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        out = {"residual": _evaluate("residual", self.residual, model, batch["x"])}
        for name, (condition, _) in self.boundary.items():
            out[name] = _evaluate(name, condition, model, batch[name])
        return out

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        rows: Tensor = out["residual"].square()
        for name, (_, weight) in self.boundary.items():
            rows = rows + weight * out[name].square().mean()
        return rows

    def __repr__(self) -> str:
        parts = "".join(f", {name}: {weight:g}" for name, (_, weight) in self.boundary.items())
        return f"Residual({getattr(self.residual, '__name__', repr(self.residual))}{parts})"


def _evaluate(name: str, equation: Equation, model: nn.Module, points: Tensor) -> Tensor:
    with torch.enable_grad():  # derivatives by the points are part of the value, in evaluation too
        values = equation(model, points.detach().requires_grad_())
    if values.shape != points.shape[:1]:
        raise ValueError(
            f"Residual: '{name}' must return one value per point, shape ({len(points)},), got {tuple(values.shape)}"
        )
    return values
