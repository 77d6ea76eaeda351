"""Slices through the loss around a trained net, in directions that make nets comparable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import implements
from ..core.modes import evaluating
from ..parts.curvature import gaussian, hessian, lanczos

__all__ = ["TrajectoryPlane", "convexity_map", "filter_normalized_direction", "loss_surface", "trajectory_plane"]

Direction = Mapping[str, Tensor]
Unit = Literal["filter", "layer", "none"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@implements("loss-landscape-filter-norm")
def filter_normalized_direction(
    model: nn.Module, generator: torch.Generator | None = None, by: Unit = "filter"
) -> dict[str, Tensor]:
    r"""Filter-normalised direction: random, but each filter as long as the net's own, so that landscapes compare.

    Computes:
        A Gaussian direction in weight space whose every filter has the norm of the model's filter: the row of a linear
        layer, the kernels that lead to one channel of a convolution. Biases and the gains of normalisation do not move.
        ``loss_surface`` then evaluates the loss along one or two of them, ``convexity_map`` the curvature.

    Formula:
        d_{ij} \leftarrow \frac{d_{ij}}{\|d_{ij}\|} \, \|\theta_{ij}\|
        f(a, b) = L(\theta + a \delta + b \eta)

    Helps:
        Seeing whether a minimum is wide. A ReLU net whose first layer is multiplied by ten and the second divided by
        ten computes the same, and has the same curve here up to rounding; along raw directions the curves have little
        in common.

    Avoid:
        Comparing nets that differ by a factor per neuron rather than per layer, unless normalisation follows the layer:
        the rows of the next layer do not see it and the curves change. A slice in two of a million dimensions shows no
        negative curvature where there is little of it; ``convexity_map`` tells.

    Defaults:
        One direction, filter by filter. The paper draws surfaces of 51 x 51 points on [-1, 1]^2.

    Cost:
        Of a surface a forward pass over the data at each point.

    Reference:
        Li, Xu, Taylor, Studer, Goldstein 2018, Visualizing the Loss Landscape of Neural Nets, arXiv 1712.09913,
        section 4.

    Args:
        model: its trainable parameters, tied ones once; those of fewer than two dimensions get zeros.
        generator: of the draw, on the device of the parameters. The same one for two nets of one shape gives directions
            that differ in their lengths only.
        by: ``"filter"``; ``"layer"`` gives every tensor the norm of the model's; ``"none"`` leaves the draw as it is.

    Returns:
        by parameter name, of the shapes and types of the parameters.

    Raises:
        ValueError: for an unknown ``by``, or a model without trainable parameters.
    """
    if by not in ("filter", "layer", "none"):
        raise ValueError(f"by must be 'filter', 'layer' or 'none', got {by!r}")
    params = _trainable(model)
    transposed = {id(m.weight) for m in model.modules() if isinstance(m, TRANSPOSED)}
    with torch.no_grad():
        return {
            name: torch.zeros_like(p, requires_grad=False)
            if p.ndim < 2
            else _as_long_as(drawn, p, by, 1 if id(p) in transposed else 0)
            for (name, p), drawn in zip(params.items(), gaussian(params, generator).values(), strict=True)
        }


def _as_long_as(drawn: Tensor, like: Tensor, by: Unit, rows: int) -> Tensor:
    """The draw with the norms of ``like``, over all dimensions but that of the rows."""
    if by == "none":
        return drawn
    kept = {rows} if by == "filter" else set()
    over = tuple(i for i in range(like.ndim) if i not in kept)
    wide = torch.promote_types(like.dtype, torch.float32)
    norm = torch.linalg.vector_norm(drawn, dim=over, keepdim=True, dtype=wide)
    target = torch.linalg.vector_norm(like, dim=over, keepdim=True, dtype=wide)
    return (drawn.to(wide) * (target / norm.clamp_min(torch.finfo(wide).tiny))).to(like.dtype)


# ---- surfaces
def loss_surface(
    model: nn.Module,
    loss: Callable[[], Tensor],
    first: Direction,
    second: Direction | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """The loss on a line or a plane through the model's weights, which are restored bit for bit.

    Args:
        model: put in evaluation mode meanwhile, so that running statistics stay those of the trained net.
        loss: computes the scalar from ``model``'s present weights.
        first, second: directions by parameter name; what they leave out stays.
        rows, columns: coordinates along ``first`` and ``second``; by default 51 on [-1, 1].

    Returns:
        (len(rows),), or (len(rows), len(columns)) with a second direction; float64.

    Raises:
        ValueError: if a direction names a parameter that the model lacks, or has another shape.
    """

    def value(_: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return loss()

    return _over(model, value, first, second, rows, columns)


def convexity_map(
    model: nn.Module,
    loss: Callable[[], Tensor],
    first: Direction,
    second: Direction | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    iterations: int = 20,
    seed: int = 0,
) -> Tensor:
    """|smallest / largest eigenvalue| of the Hessian at each point of ``loss_surface``: near 0 where it is convex.

    Args:
        iterations: Lanczos steps a point, each a Hessian-vector product, from a random start of this ``seed``; extreme
            eigenvalues are found first, from inside the spectrum.

    Returns:
        as of ``loss_surface``.
    """

    def ratio(params: dict[str, Tensor]) -> Tensor:
        device = next(iter(params.values())).device
        start = gaussian(params, torch.Generator(device).manual_seed(seed))
        ends = lanczos(hessian(loss, params), start, iterations).values[[0, -1]]
        return (ends[0] / ends[1]).abs()

    return _over(model, ratio, first, second, rows, columns)


def _over(
    model: nn.Module,
    measure: Callable[[dict[str, Tensor]], Tensor],
    first: Direction,
    second: Direction | None,
    rows: Tensor | None,
    columns: Tensor | None,
) -> Tensor:
    """``measure`` at every point of the grid."""
    params = _trainable(model)
    directions = [first] if second is None else [first, second]
    for direction in directions:
        for name, d in direction.items():
            if name not in params or params[name].shape != d.shape:
                raise ValueError(f"the direction of '{name}' fits no trainable parameter of the model")
    axes = [torch.linspace(-1, 1, 51) if axis is None else axis for axis in (rows, columns)[: len(directions)]]
    grid = torch.cartesian_prod(*axes).view(-1, len(axes)).tolist()
    moved: list[Tensor] = list(params.values())
    kept = [p.detach().clone() for p in moved]
    found = []
    try:
        with evaluating(model):
            for point in grid:
                with torch.no_grad():
                    torch._foreach_copy_(moved, kept)
                    for coordinate, direction in zip(point, directions, strict=True):
                        some: list[Tensor] = [params[name] for name in direction]
                        torch._foreach_add_(some, list(direction.values()), alpha=coordinate)
                found.append(measure(params).detach().double())
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, kept)
    return torch.stack(found).view([len(axis) for axis in axes])


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    params: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("the model has no trainable parameters to move")
    return params


# ---- trajectories
@dataclass(frozen=True)
class TrajectoryPlane:
    """The plane that shows most of a training run.

    Attributes:
        first, second: orthogonal directions of length 1, for ``loss_surface``.
        coordinates: of every checkpoint relative to the last, (n, 2).
        explained: shares of the trajectory's variance along both, (2,).
    """

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    coordinates: Tensor
    explained: Tensor


@torch.no_grad()
def trajectory_plane(checkpoints: Sequence[Direction]) -> TrajectoryPlane:
    """The two principal components of a trajectory in weight space (section 7 of the paper).

    Two random directions would show next to nothing of it: in high dimension they are orthogonal to everything.

    Args:
        checkpoints: weights by parameter name, in order of training; the last is the origin. At least 3.

    Raises:
        ValueError: for fewer than 3, or if they lie on a line.
    """
    if len(checkpoints) < 3:
        raise ValueError(f"a plane needs at least 3 checkpoints, got {len(checkpoints)}")
    last = checkpoints[-1]
    flat = torch.stack([torch.cat([(c[n] - last[n]).double().flatten() for n in last]) for c in checkpoints])
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)  # n x n: there are fewer checkpoints than weights
    values, vectors = values.flip(0)[:2], vectors.flip(1)[:, :2]
    total = centred.square().sum()
    if not values[1] > 1e-12 * total:
        raise ValueError("the checkpoints lie on a line, which spans no plane")
    axes = (vectors.T @ centred) / values.sqrt()[:, None]
    sizes = [t.numel() for t in last.values()]
    first, second = (
        {n: piece.view_as(t).to(t.dtype) for piece, (n, t) in zip(torch.split(a, sizes), last.items(), strict=True)}
        for a in axes
    )
    return TrajectoryPlane(first, second, flat @ axes.T, values / total)
