"""Kernels, MMD and HSIC."""

from __future__ import annotations

import math
from itertools import permutations, product
from statistics import median_low

import pytest
import torch
from torch import Tensor

from wellposed.parts.kernels import Kernel, hsic, kernel_matrix, median_bandwidth, mmd

NAMES: tuple[Kernel, ...] = ("gaussian", "laplace", "imq", "energy", "linear")
SCALED: tuple[Kernel, ...] = ("gaussian", "laplace", "imq")


def rows(n: int, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(a: Tensor, b: Tensor, kernel: Kernel, s: float) -> float:
    r = math.dist(a.tolist(), b.tolist())
    values = {
        "gaussian": math.exp(-r * r / (2 * s * s)),
        "laplace": math.exp(-r / s),
        "imq": s * s / (s * s + r * r),
        "energy": -r,
        "linear": sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)),
    }
    return values[str(kernel)]


@pytest.mark.parametrize("kernel", NAMES)
def test_matrix_by_explicit_loops(kernel: Kernel) -> None:
    x, y = rows(4), rows(5, seed=1)
    found = kernel_matrix(x, y, kernel, 0.7 if kernel in SCALED else None)
    loops = torch.tensor([[by_hand(a, b, kernel, 0.7) for b in y] for a in x], dtype=torch.float64)
    torch.testing.assert_close(found, loops, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", NAMES)
def test_mmd_by_explicit_loops(kernel: Kernel, unbiased: bool) -> None:
    x, y = rows(4), rows(6, seed=1)

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        pairs = [(i, j) for i, j in product(range(len(a)), range(len(b))) if not (same and unbiased and i == j)]
        return sum(by_hand(a[i], b[j], kernel, 0.7) for i, j in pairs) / len(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    found = mmd(x, y, kernel, 0.7 if kernel in SCALED else None, unbiased)
    assert found.item() == pytest.approx(expected, rel=1e-11)


def test_several_scales_are_a_sum() -> None:
    x, y = rows(4), rows(5, seed=1)
    each = sum(kernel_matrix(x, y, "imq", s) for s in (0.5, 2.0))
    torch.testing.assert_close(kernel_matrix(x, y, "imq", (0.5, 2.0)), each, rtol=1e-14, atol=0)
    torch.testing.assert_close(kernel_matrix(x, y, "imq", torch.tensor([0.5, 2.0])), each, rtol=1e-14, atol=0)


def test_median_bandwidth() -> None:
    x = rows(6)
    distances = [math.dist(x[i].tolist(), x[j].tolist()) for i in range(6) for j in range(i)]
    assert median_bandwidth(x).item() == pytest.approx(median_low(distances), rel=1e-12)
    assert median_bandwidth(torch.ones(4, 2)).item() == 1
    x, y = rows(4).requires_grad_(), rows(5, seed=1)
    both = median_bandwidth(torch.cat([x, y]))
    assert not both.requires_grad
    torch.testing.assert_close(mmd(x, y), mmd(x, y, scale=float(both)), rtol=1e-14, atol=0)


def test_mean_of_the_unbiased_estimate_is_the_value() -> None:
    """Over all ordered samples without repetition from a small population the unbiased within-term has no bias."""
    population, y = rows(5), rows(7, seed=1)
    whole = mmd(population, y, "gaussian", 1.0)
    parts = [mmd(population[list(chosen)], y, "gaussian", 1.0) for chosen in permutations(range(5), 3)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=1e-14)


def test_closed_form_of_two_gaussians() -> None:
    """N(0, 1) and N(a, 1), Gaussian kernel of scale s: 2 s/sqrt(s^2 + 2) (1 - exp(-a^2 / (2 s^2 + 4)))."""
    n, s, a = 1000, 1.0, 1.5
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = torch.special.ndtri(middles)[:, None]  # n quantiles: the means over them are those of the law within about 1/n
    value = 2 * s / math.sqrt(s * s + 2) * (1 - math.exp(-a * a / (2 * s * s + 4)))
    assert mmd(x, x + a, "gaussian", s, unbiased=False).item() == pytest.approx(value, abs=1 / n)
    assert value > 0.25


def test_energy_distance_of_two_points() -> None:
    """Of two point masses at distance r it is 2 r."""
    x, y = torch.zeros(3, 2), torch.tensor([[3.0, 4.0]]).repeat(4, 1)
    assert mmd(x, y, "energy").item() == pytest.approx(10.0, rel=1e-6)


@pytest.mark.parametrize("kernel", NAMES)
def test_gradient(kernel: Kernel) -> None:
    x, y = rows(4, 2).requires_grad_(), rows(3, 2, seed=1).requires_grad_()
    scale = 0.9 if kernel in SCALED else None
    assert torch.autograd.gradcheck(lambda a, b: mmd(a, b, kernel, scale), (x, y))


@pytest.mark.parametrize("kernel", NAMES)
def test_gradient_is_finite_where_rows_are_equal(kernel: Kernel) -> None:
    x = torch.ones(3, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(mmd(x, torch.cat([x.detach(), rows(2, 2).float()]), kernel), x)
    assert slope.isfinite().all()


def test_a_function_as_kernel() -> None:
    """The cubic kernel of the kernel inception distance."""
    x, y = rows(4), rows(5, seed=1)
    found = mmd(x, y, lambda a, b: (a @ b.T / 3 + 1) ** 3, unbiased=False)
    loops = [
        sum((float(p @ q) / 3 + 1) ** 3 for p in a for q in b) / (len(a) * len(b)) for a, b in ((x, x), (y, y), (x, y))
    ]
    assert found.item() == pytest.approx(loops[0] + loops[1] - 2 * loops[2], rel=1e-12)


def test_half_precision_is_computed_wide() -> None:
    x, y = rows(8).bfloat16(), rows(8, seed=1).bfloat16()
    for kernel in NAMES:
        assert mmd(x, y, kernel).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            found = mmd(x, y, kernel)
        torch.testing.assert_close(found, mmd(x.float(), y.float(), kernel), rtol=1e-6, atol=1e-6)


def test_hsic_by_explicit_loops() -> None:
    """Both estimates by their sums over tuples of rows."""
    n = 6
    x = rows(n)
    k, l = kernel_matrix(x, scale=1.0), kernel_matrix(x[:, :1] + rows(n, 1, 2), scale=0.5)  # noqa: E741
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    assert hsic(k, l).item() == pytest.approx(float((k @ h @ l @ h).trace()) / (n - 1) ** 2, rel=1e-11)
    two = sum(float(k[i, j] * l[i, j]) for i, j in permutations(range(n), 2)) / math.perm(n, 2)
    three = sum(float(k[i, j] * l[i, q]) for i, j, q in permutations(range(n), 3)) / math.perm(n, 3)
    four = sum(float(k[i, j] * l[q, r]) for i, j, q, r in permutations(range(n), 4)) / math.perm(n, 4)
    assert hsic(k, l, unbiased=True).item() == pytest.approx(two + four - 2 * three, rel=1e-10)


def test_hsic_tells_dependence() -> None:
    x, other = rows(200, 1), rows(200, 1, seed=1)
    dependent = hsic(kernel_matrix(x), kernel_matrix(x.square()), unbiased=True)
    independent = hsic(kernel_matrix(x), kernel_matrix(other), unbiased=True)
    assert dependent > 10 * independent.abs()


def test_hsic_of_linear_kernels_is_the_squared_cross_covariance() -> None:
    x, y = rows(9), rows(9, 2, seed=1)
    cross = (x - x.mean(0)).T @ (y - y.mean(0)) / 8
    found = hsic(kernel_matrix(x, kernel="linear"), kernel_matrix(y, kernel="linear"))
    torch.testing.assert_close(found, cross.square().sum(), rtol=1e-11, atol=0)


def test_bad_input() -> None:
    x = rows(4)
    with pytest.raises(ValueError, match="kernel must be a function or one of gaussian, laplace"):
        kernel_matrix(x, kernel="rbf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="linear has no scale"):
        kernel_matrix(x, kernel="linear", scale=1.0)
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        kernel_matrix(x, scale=(1.0, 0.0))
    with pytest.raises(ValueError, match="scale is an empty list"):
        kernel_matrix(x, scale=())
    with pytest.raises(ValueError, match=r"at least 2 rows, got \(4, 3\) and \(1, 3\)"):
        mmd(x, x[:1])
    with pytest.raises(ValueError, match="N at least 4"):
        hsic(torch.eye(3), torch.eye(3), unbiased=True)


def test_a_missing_value_does_not_become_a_bandwidth_of_1() -> None:
    x = rows(5)
    x[2, 1] = math.nan
    assert median_bandwidth(x).isnan()


def test_the_bandwidth_of_one_row() -> None:
    assert median_bandwidth(rows(1)) == 1
