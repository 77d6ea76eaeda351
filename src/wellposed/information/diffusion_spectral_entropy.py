"""Diffusion spectral entropy: how many ways a random walk over a cloud of points has to go, noise left aside."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import implements
from ..parts.kernels import kernel_matrix, median_bandwidth
from ..parts.spectra import entropy
from ._samples import refuse_gaps

__all__ = ["diffusion_spectral_entropy", "diffusion_spectral_information", "diffusion_spectrum"]


def diffusion_spectrum(x: Tensor, sigma: float | None = 10.0, anisotropy: float = 0.0) -> Tensor:
    """Eigenvalues of a random walk over points, with steps more likely to near ones; ascending, the largest is 1.

    Args:
        x: (N, ...), flattened; N at least 2.
        sigma: width of the Gaussian kernel, above 0, in units of x; None: the median distance.
        anisotropy: a in [0, 1]: the kernel is divided by its row sums to the power a on both sides first, which takes
            out how densely points lie (1), or leaves it (0).

    Returns:
        shape (N,), in float64 where the device has it.

    Raises:
        ValueError: for a number out of its range, NaN or infinity in x, or fewer than 2 points.
    """
    if len(x) < 2 or not 0 <= anisotropy <= 1:
        raise ValueError(
            f"diffusion_spectrum needs at least 2 points and an anisotropy in [0, 1], got {len(x)} and {anisotropy:g}"
        )
    refuse_gaps("diffusion_spectrum", x=x)
    rows = x.reshape(len(x), -1).to(torch.float32 if x.device.type == "mps" else torch.float64)
    k = kernel_matrix(rows, None, "gaussian", sigma)
    if anisotropy:
        density = k.sum(1) ** -anisotropy
        k = density[:, None] * k * density
    root = k.sum(1).rsqrt()  # D^-1/2 K D^-1/2 has the eigenvalues of the walk D^-1 K, and is symmetric
    return torch.linalg.eigvalsh(root[:, None] * k * root)


@implements("diffusion-spectral-entropy")
def diffusion_spectral_entropy(
    x: Tensor, sigma: float | None = 10.0, t: float = 1.0, anisotropy: float = 0.0, drop_top: bool = False
) -> Tensor:
    r"""Diffusion spectral entropy: the Shannon entropy, in bits, of the spectrum of a random walk over points.

    Computes:
        The eigenvalues of the walk after t steps, as shares of their sum, and the entropy of the shares: 0 if all
        points are one, log2 of their number if each is alone, in between about as many directions as the cloud has.
        Larger t damps small eigenvalues, which are noise.

    Formula:
        K_{ij} = e^{-\lVert x_i - x_j \rVert^2 / 2 \sigma^2} , \qquad P = D^{-1} K , \quad D_{ii} = \sum_j K_{ij}
        \alpha_i = \frac{|\lambda_i(P)|^t}{\sum_j |\lambda_j(P)|^t}
        S = -\sum_i \alpha_i \log_2 \alpha_i

    Helps:
        Measuring representations of many dimensions, where histograms have one point a bin: it rose with the dimension
        of a torus under noise in 50 dimensions, where they were saturated.

    Avoid:
        Comparing clouds of different scale at one sigma, or of different size: the largest value is log2 of the number
        of points. With noise take t of 2 and more; at 1 it hides differences.

    Defaults:
        sigma 10, t 1, the authors' code; the median distance (sigma None) where scales are not known.

    Cost:
        N^2 memory and N^3 time for N points; some thousands at most, draw a subset of more.

    Reference:
        Liao, Liu, Christensen, Tong, Huguet, Wolf, Nickel, Adelstein, Krishnaswamy 2023, Assessing Neural Network
        Representations During Training Using Noise-Resilient Diffusion Spectral Entropy, arXiv 2312.04823. The matrix
        of the authors' code, meant to be anisotropic, has the spectrum of the plain walk, anisotropy 0; the first
        version of that code left out the largest eigenvalue, the later ones keep it. Values were compared with it.

    Args:
        x: points, (N, ...), flattened; N at least 2.
        sigma: width of the kernel, above 0, in units of x; None: the median distance.
        t: steps of the walk, above 0.
        anisotropy: 0 to 1, see ``diffusion_spectrum``.
        drop_top: leave out the largest eigenvalue, which is 1 for every cloud.

    Returns:
        a scalar, in float64 where the device has it; differentiable.

    Raises:
        ValueError: for a number out of its range, NaN or infinity in x, or fewer than 2 points.
    """
    if not t > 0:
        raise ValueError(f"diffusion_spectral_entropy: t must be above 0, got {t:g}")
    values = diffusion_spectrum(x, sigma, anisotropy)
    if drop_top:
        values = values[:-1]
    noise = len(x) * torch.finfo(values.dtype).eps  # of the decomposition; what is below would be raised to shares
    values = values.abs()
    return entropy(values.where(values > noise, 0) ** t) / math.log(2)


def diffusion_spectral_information(
    x: Tensor,
    y: Tensor,
    sigma: float | None = 10.0,
    t: float = 1.0,
    anisotropy: float = 0.0,
    drop_top: bool = False,
    draws: int = 5,
    seed: int = 0,
) -> Tensor:
    """Diffusion spectral mutual information of points and labels, in bits.

    The mean over classes, weighed by their size, of how much entropy a class lacks against random points of the same
    number: entropies of different numbers of points do not compare. Below 0 where a class is more spread than chance.

    Args:
        x: points, (N, ...), flattened.
        y: labels, (N,), or numbers of clusters; classes of a single point count as lacking nothing.
        sigma, t, anisotropy, drop_top: as of ``diffusion_spectral_entropy``; sigma None: one median distance for all.
        draws: random subsets for each class, at least 1.
        seed: of the subsets.

    Returns:
        a scalar.

    Raises:
        ValueError: if x and y differ in rows or hold NaN, or draws is less than 1.
    """
    if len(x) != len(y) or y.ndim != 1 or draws < 1:
        raise ValueError(
            f"diffusion_spectral_information needs a label a point and at least 1 draw; got {len(x)} points, labels "
            f"{tuple(y.shape)}, {draws} draws"
        )
    refuse_gaps("diffusion_spectral_information", x=x, y=y)
    rows = x.reshape(len(x), -1)
    if sigma is None:
        sigma = float(median_bandwidth(rows))
    generator = torch.Generator().manual_seed(seed)

    def bits(index: Tensor) -> Tensor:
        return diffusion_spectral_entropy(rows[index], sigma, t, anisotropy, drop_top)

    total = torch.zeros((), dtype=torch.float32 if x.device.type == "mps" else torch.float64, device=x.device)
    for label in torch.unique(y):
        own = (y == label).nonzero().flatten()
        if len(own) < 2:
            continue
        random = [torch.randperm(len(x), generator=generator)[: len(own)].to(x.device) for _ in range(draws)]
        lacking = torch.stack([bits(index) for index in random]).mean() - bits(own)
        total = total + len(own) / len(x) * lacking
    return total
