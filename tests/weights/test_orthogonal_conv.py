"""Orthogonal convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.weights.orthogonal_conv import (
    OrthogonalConv,
    conv_singular_values,
    orthogonal_conv_exists,
    orthogonal_conv_loss,
    orthogonality_errors,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 3


def matrix(kernel: Tensor, size: int, stride: int) -> Tensor:
    """The operator's matrix with circular padding, column by column."""
    side, d = size * stride, kernel.ndim - 2
    inputs = torch.eye(kernel.shape[1] * side**d, dtype=kernel.dtype).view(-1, kernel.shape[1], *(side,) * d)
    pad = [p for k in reversed(kernel.shape[2:]) for p in (0, k - 1)]
    convolve: Callable[..., Tensor] = {1: F.conv1d, 2: F.conv2d}[d]
    return convolve(F.pad(inputs, pad, mode="circular"), kernel, stride=stride).flatten(1).T


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (6, 3, 2, 2), (9, 1, 3, 3), (13, 3, 3, 3), (4, 3, 5)])
def test_the_loss_is_the_frobenius_error_of_the_whole_operator(shape: tuple[int, ...], stride: int) -> None:
    """N^d L = ||A A^T - I||^2, or ||A^T A - I||^2 for more rows than columns: rows and columns, both parities of k."""
    kernel, size = draw(*shape), 10 // stride
    a = matrix(kernel, size, stride)
    gram = a @ a.T if len(a) <= a.shape[1] else a.T @ a
    expected = (gram - torch.eye(len(gram))).square().sum()
    d = len(shape) - 2
    torch.testing.assert_close(size**d * orthogonal_conv_loss(kernel, stride), expected, rtol=1e-12, atol=0)
    frobenius, spectral = orthogonality_errors(kernel, size, stride)
    torch.testing.assert_close(frobenius.square(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(spectral, torch.linalg.matrix_norm(gram - torch.eye(len(gram)), 2))


@pytest.mark.parametrize("stride", [1, 2])
def test_singular_values_of_the_operator(stride: int) -> None:
    kernel = draw(3, 2, 3, 3)
    ours = conv_singular_values(kernel, 4, stride).flatten().sort().values
    theirs = torch.linalg.svdvals(matrix(kernel, 4, stride)).sort().values
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="side 2 is smaller than the kernel"):
        conv_singular_values(kernel, 2)


def test_value_by_loops() -> None:
    """One dimension, stride 2: filters overlap at every shift by the stride."""
    kernel, k = draw(3, 2, 5), 5
    total = 0.0
    for a, b in itertools.product(range(3), repeat=2):
        for shift in (-4, -2, 0, 2, 4):
            overlap = sum(
                float(kernel[a, c, i] * kernel[b, c, i + shift])
                for c in range(2)
                for i in range(k)
                if 0 <= i + shift < k
            )
            total += (overlap - (a == b and shift == 0)) ** 2
    assert orthogonal_conv_loss(kernel, 2).item() == pytest.approx(total, rel=1e-12)


def test_groups_are_separate_convolutions() -> None:
    kernel = draw(6, 2, 3, 3)
    apart = sum(orthogonal_conv_loss(part) for part in kernel.chunk(3))
    torch.testing.assert_close(orthogonal_conv_loss(kernel, groups=3), apart)


def test_spectral_bound_without_the_factor_of_the_units() -> None:
    """Err_s^2 <= (2 floor((k - 1) / S) + 1)^2 L at every size."""
    for seed in range(20):
        kernel = draw(4, 3, 3, 3, seed=seed)
        loss = orthogonal_conv_loss(kernel)
        for size in (5, 8, 13):
            assert orthogonality_errors(kernel, size)[1] ** 2 <= 25 * loss


def test_gradient() -> None:
    for stride in (1, 2):
        kernel = draw(4, 2, 3, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda k, s=stride: orthogonal_conv_loss(k, s, 2), kernel)


@pytest.mark.parametrize(
    ("shape", "exists"),
    [((4, 3, 2, 1), True), ((6, 1, 2, 3), False), ((9, 1, 3, 3), True), ((10, 1, 2, 3), False), ((10, 1, 3, 3), True)],
)
def test_existence_as_minimisation_finds_it(shape: tuple[int, int, int, int], exists: bool) -> None:
    m, c, k, s = shape
    assert orthogonal_conv_exists(m, c, k, s) == exists
    kernel = draw(m, c, k, k).requires_grad_()
    optimizer = torch.optim.LBFGS([kernel], lr=0.5, max_iter=150)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = orthogonal_conv_loss(kernel, s)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert (float(closure().detach()) < 1e-6) == exists


def test_which_layers_count() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3), nn.ConvTranspose2d(4, 6, 3),
        nn.Linear(4, 2),
    )  # fmt: skip
    model[2].weight.requires_grad_(False)
    method = OrthogonalConv()
    wp.Recipe(method).attach(model, wp.Classify(classes=2)).detach()
    assert method.layers == ("1", "3")
    with pytest.raises(wp.RecipeError, match="has no others"):
        wp.Recipe(OrthogonalConv()).attach(nn.Conv2d(4, 4, 3, groups=4), wp.Classify(classes=2))
    with pytest.raises(wp.RecipeError, match="has no trainable convolution"):
        wp.Recipe(OrthogonalConv()).attach(nn.Linear(4, 4), wp.Classify(classes=2))
    with pytest.raises(wp.RecipeError, match=r"not both at once as in '0'.*stride 1 or dilation 1"):
        wp.Recipe(OrthogonalConv()).attach(
            nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, dilation=2)), wp.Classify(classes=2)
        )


def test_trains_a_net_with_batch_norm_towards_isometry() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, bias=False),
        nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    recipe = wp.Recipe(OrthogonalConv(strength=1.0)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch = {"x": torch.randn(12, 1, 8, 8), "y": torch.arange(12) % 3}
    terms = [recipe.step(batch, optimizer) for _ in range(200)]
    assert terms[-1]["OrthogonalConv"] < 0.02 * terms[0]["OrthogonalConv"]
    assert terms[-1]["task"] < terms[0]["task"]
