"""Cauchy-Schwarz divergence information bottleneck, Yu et al. 2024."""

import math

import torch
from torch import Tensor

from ...information.cs_ib import cs_divergence, cs_information
from ...parts.divergences import gaussian_cauchy_schwarz
from ..claim import Claim
from ..mutation import Function, Mutation

ROWS, SCALE, MEAN, STD, RHOS = 2000, 0.5, 1.5, 0.7, (0.6, 0.9)


def stratified_normal(dims: int, g: torch.Generator) -> Tensor:
    """Standard normal points from a lattice of the unit cube, moved at random: less noise than independent ones."""
    ratio = 1.32471795724474602596  # the plastic number: its powers fill the square evenly
    steps = torch.tensor([ratio**-1, ratio**-2][:dims], dtype=torch.float64)
    points = torch.arange(ROWS, dtype=torch.float64)[:, None] * steps + torch.rand(dims, generator=g).double()
    return torch.special.ndtri((points % 1).clamp(1e-9, 1 - 1e-9))


def smoothed(*cov: list[float]) -> Tensor:
    """A covariance with what the kernels add."""
    return torch.tensor(cov, dtype=torch.float64) + SCALE**2 / 2 * torch.eye(len(cov), dtype=torch.float64)


def run(seed: int) -> dict[str, dict[str, float]]:
    """How far plug-in estimates are from the closed forms of Gaussians, relatively."""
    g = torch.Generator().manual_seed(seed)
    zero, mean = torch.zeros(1).double(), torch.tensor([MEAN]).double()
    found = {"divergence": float(cs_divergence(stratified_normal(1, g), MEAN + STD * stratified_normal(1, g), SCALE))}
    truth = {"divergence": float(gaussian_cauchy_schwarz(zero, smoothed([1]), mean, smoothed([STD**2])))}
    points = stratified_normal(2, g)
    x, noise = points[:, :1], points[:, 1:]
    zeros, apart = torch.zeros(2).double(), smoothed([1, 0], [0, 1])
    for rho in RHOS:
        name = f"information at correlation {rho:g}"
        found[name] = float(cs_information(x, rho * x + math.sqrt(1 - rho**2) * noise, SCALE))
        truth[name] = float(gaussian_cauchy_schwarz(zeros, smoothed([1, rho], [rho, 1]), zeros, apart))
    return {"errors": {name: abs(found[name] / truth[name] - 1) for name in found}}


def narrowed(log_kernel: Function) -> Function:
    """Kernels of half the variance."""
    return lambda *args: 2 * log_kernel(*args)


CLAIM = Claim(
    paper="cs-ib",
    statement="Kernel sums give the Cauchy-Schwarz divergence of two Gaussians, and the quadratic mutual information "
    "of correlated ones, as their closed forms say with variances raised by half the squared width of the kernels.",
    arena=f"{ROWS} stratified points; N(0, 1) against N({MEAN:g}, {STD:g}^2), standard normals of correlation "
    f"{' and '.join(f'{r:g}' for r in RHOS)}; kernels of width {SCALE:g}; five seeds",
    quantity="relative error",
    kind="exact",
    tolerance=0.05,
    run=run,
    mutation=Mutation("kernels of half the variance", "wellposed.information.cs_ib:_log_kernel", narrowed),
)
