"""Convolutions that keep lengths: orthogonality of the whole operator, from its kernel alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import Scalar
from ._layers import CONV, weight_layers

__all__ = [
    "OrthogonalConv", "conv_singular_values", "orthogonal_conv_exists", "orthogonal_conv_loss", "orthogonality_errors",
]  # fmt: skip

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def orthogonal_conv_loss(kernel: Tensor, stride: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """How far a convolution is from an orthogonal map: the kernel convolved with itself against the identity.

    Args:
        kernel: (M, C / groups, k...), in one to three spatial dimensions, as ``nn.ConvNd`` stores it.
        stride: of the convolution.
        groups: of the convolution.

    Returns:
        ||conv(K, K, padding P, stride S) - I||_F^2 - max(0, M - C S^d), summed over groups, a scalar; at least 0, and 0
        for orthogonal rows (M <= C S^d) or columns. Achour, Malgouyres, Mamalet 2022 (arXiv 2108.05623).
        With circular padding on N^d outputs, of input side at least 2k - 1, N^d times it is
        ||A A^T - I||_F^2 of the operator's matrix A, or ||A^T A - I||_F^2.
    """
    d = kernel.ndim - 2
    strides = (stride,) * d if isinstance(stride, int) else tuple(stride)
    reach = [(k - 1) // s for k, s in zip(kernel.shape[2:], strides, strict=True)]
    units, channels = len(kernel) // groups, kernel.shape[1]
    # groups become channels, so that every group's filters meet each other and nobody else
    stacked = kernel.reshape(groups, units, *kernel.shape[1:]).transpose(0, 1).flatten(1, 2)
    padding = tuple(r * s for r, s in zip(reach, strides, strict=True))
    overlaps = CONVOLVE[d](stacked, kernel, stride=strides, padding=padding, groups=groups)
    eye = torch.eye(units, dtype=kernel.dtype, device=kernel.device).repeat(1, groups)
    where: tuple[Any, ...] = (..., *reach)
    centre = overlaps[where]
    rest = overlaps.square().sum() - centre.square().sum()
    return rest + (centre - eye).square().sum() - groups * max(0, units - channels * math.prod(strides))


def conv_singular_values(kernel: Tensor, size: int, stride: int = 1) -> Tensor:
    """Singular values of a convolution with circular padding, from the Fourier transform of its kernel.

    Args:
        kernel: (M, C, k...).
        size: side N of the output; the input's is N stride.
        stride: of the convolution.

    Returns:
        shape (N^d, min(M, C stride^d)), descending for each frequency; Sedghi, Gupta, Long 2019 (arXiv 1805.10408) for
        stride 1, with the frequencies that subsampling folds together side by side otherwise.
    """
    d, side = kernel.ndim - 2, size * stride
    if side < max(kernel.shape[2:]):
        raise ValueError(f"an image of side {side} is smaller than the kernel {tuple(kernel.shape[2:])}")
    symbol = torch.fft.fftn(kernel, s=(side,) * d, dim=tuple(range(2, 2 + d)))
    folded = [
        symbol[(..., *(slice(a * size, (a + 1) * size) for a in alias))]
        for alias in itertools.product(range(stride), repeat=d)
    ]
    matrices = torch.cat(folded, 1) / stride ** (d / 2)
    values: Tensor = torch.linalg.svdvals(matrices.flatten(2).permute(2, 0, 1))
    return values


def orthogonality_errors(kernel: Tensor, size: int, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Frobenius and spectral norm of A A^T - I, or A^T A - I where A has more rows than columns.

    A is the matrix of the convolution with circular padding on ``size`` outputs a side. All squared singular values lie
    within 1 +- the second.
    """
    off = conv_singular_values(kernel, size, stride).square() - 1
    return off.square().sum().sqrt(), off.abs().amax()


def orthogonal_conv_exists(units: int, channels: int, kernel: int, stride: int = 1, dim: int = 2) -> bool:
    """Whether some kernel of this shape gives an orthogonal convolution (circular padding, images that are not tiny).

    Args:
        units: M, output channels.
        channels: C, input channels.
        kernel: side k.
        stride: S.
        dim: number of spatial dimensions d.

    Returns:
        M <= C k^d where M <= C S^d (orthonormal rows), S <= k otherwise (orthonormal columns).
    """
    if units <= channels * stride**dim:
        return units <= channels * kernel**dim
    return stride <= kernel


class OrthogonalConv(Method, paper="orthogonal-conv"):
    r"""Orthogonal convolution: each convolution as a whole becomes an isometry, for images of any size.

    Computes:
        strength times the sum over convolutions of ||conv(K, K) - I||_F^2 - max(0, M - C S^2): filters overlapped with
        every shift of each other by the stride, which must be 1 for a filter with itself unshifted and 0 otherwise.
        Grouped convolutions count by group; transposed ones are orthogonal when the convolution they transpose is.

    Formula:
        L(K) = \left\| \mathrm{conv}(K, K, P, S) - I \right\|_F^2 - \max(0, M - C S^2), \quad P = \lfloor (k - 1) / S \rfloor S
        \left\| A A^\top - I \right\|_F^2 = N^2 L(K)

    Helps:
        Holding a convolution's Lipschitz constant at 1 without looking at images. Penalties on the flattened kernel do
        not: driven to 0 they left squared singular values off by 2.2.

    Avoid:
        Layers with as many output channels as input channels and stride 1, where descent often stops at a kernel that
        is far from orthogonal. Shapes for which ``orthogonal_conv_exists`` is false only approach it. It says nothing
        of zero padding, where the borders shrink.

    Defaults:
        strength 0.1, usual for this penalty on image nets.

    Cost:
        One pass; M^2 C k^2 (2 floor((k - 1) / S) + 1)^2 products a layer.

    Reference:
        Achour, Malgouyres, Mamalet 2022, Existence, Stability and Scalability of Orthogonal Convolutional Neural
        Networks, arXiv 2108.05623; the penalty is that of Wang, Chen, Chakraborty, Yu 2020 (arXiv 1911.12207). The
        spectral norm of A A^T - I squared is at most (2 floor((k - 1) / S) + 1)^2 L, by the Cauchy-Schwarz inequality
        over the taps of its symbol: the paper's bound without its factor M. Depthwise convolutions are left out: an
        orthogonal one is a mere shift.

    Args:
        strength: factor of the penalty.
    """  # noqa: E501

    scope = "params"
    example = {"model": "conv"}

    strength: Scalar = knob(0.1, low=0.0, grid=(0.01, 0.1, 1.0), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        names = weight_layers(self, model, CONV)
        layers = {n: model.get_submodule(n) for n in names}
        self.layers = tuple(n for n, m in layers.items() if tuple(m.weight.shape)[:2] != (m.groups, 1))  # type: ignore[arg-type]
        if not self.layers:
            raise RecipeError("OrthogonalConv leaves depthwise convolutions alone, and the model has no others")
        for name in self.layers:
            strides, dilations = layers[name].stride, layers[name].dilation
            if any(s > 1 and g > 1 for s, g in zip(strides, dilations, strict=True)):  # type: ignore[arg-type]
                raise RecipeError(
                    f"OrthogonalConv knows strides and dilations, but not both at once as in '{name}': "
                    "give that layer stride 1 or dilation 1"
                )

    def penalty(self, step: Step) -> Tensor:
        terms = []
        with torch.autocast(step.device.type, enabled=False):
            for name in self.layers:
                layer = step.model.get_submodule(name)
                weight = layer.weight
                assert isinstance(weight, Tensor)
                wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
                terms.append(orthogonal_conv_loss(wide, layer.stride, int(layer.groups)))  # type: ignore[arg-type]
        return torch.stack(terms).sum()
