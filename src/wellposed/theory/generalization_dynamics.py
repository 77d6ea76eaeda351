"""Test error of gradient descent over time, predicted from the spectrum of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import implements

__all__ = ["BestStop", "LinearDynamics", "estimate_snr"]


class BestStop(NamedTuple):
    """When to stop, and the test error then, over the noise variance."""

    time: float
    error: float


@implements("high-dim-generalization-dynamics")
@dataclass(frozen=True)
class LinearDynamics:
    r"""Generalisation dynamics: training and test error of a linear model, or of a linear head, over training time.

    Computes:
        The expected error of gradient flow, over teachers and noise that are independent in all directions: each
        eigendirection of the data is learned at its own speed, the strong ones first, and the weak ones pick up noise.
        ``LinearDynamics.of_data(x)`` takes the spectrum of your features, ``LinearDynamics.marchenko_pastur(alpha)``
        that of infinitely many white inputs with alpha samples per parameter. From it ``test_error`` and
        ``train_error``, the best time to stop, and what ridge regression reaches.

    Formula:
        \frac{E_g(t)}{\sigma_\epsilon^2} = \sum_k c_k \left[ (S + I) e^{-2 \lambda_k t} + \frac{(1 - e^{-\lambda_k t})^2}{\lambda_k} \right] + c_0 (S + I) + 1
        \frac{E_t(t)}{\sigma_\epsilon^2} = \frac{1}{P} \sum_k e^{-2 \lambda_k t} \left[ \lambda_k (S + I) + 1 \right] + 1 - \frac{r}{P}
        \rho(\lambda) = \frac{\sqrt{(\lambda_+ - \lambda)(\lambda - \lambda_-)}}{2 \pi \lambda}, \quad \lambda_\pm = (\sqrt{\alpha} \pm 1)^2

    Helps:
        Saying how long to train before training: where samples are about as many as parameters, training on is worst,
        and stopping at the best time costs within 2 % of the best ridge regression. A large initialisation adds to the
        error, for good where there are fewer samples than parameters.

    Avoid:
        Nets whose features change while they train: it is exact for a fixed kernel only. Teachers that are aligned with
        the strong directions of the data: it takes them to point anywhere, and is pessimistic then.

    Defaults:
        Initial weights of zero (inr 0).

    Cost:
        One eigendecomposition, O(min(P, N)^2 max(P, N)) for P samples of N features.

    Reference:
        Advani, Saxe 2017, High-dimensional dynamics of generalization error in neural networks, arXiv 1710.03667. The
        training error is that of the noisy labels, derived here in the same way; weights c_k for inputs that are not
        white are ours.

    Args:
        eigenvalues: of the sum of x x', those above zero, (K,).
        weights: E (x' v_k)^2 of new inputs along each eigenvector, (K,).
        frozen: the same along all directions that the data do not reach, together.
        shares: eigendirections per training sample at each eigenvalue, (K,): 1/P each for data.
    """  # noqa: E501 (a formula is one line)

    eigenvalues: Tensor
    weights: Tensor
    frozen: float
    shares: Tensor

    @classmethod
    def marchenko_pastur(cls, alpha: float, nodes: int = 4000) -> LinearDynamics:
        """Of white inputs with entries of variance 1/N, in the limit of many samples P and parameters N.

        Args:
            alpha: P / N.
            nodes: of the quadrature over the spectrum.

        Raises:
            ValueError: unless alpha is above 0.
        """
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be above 0, got {alpha:g}")
        angle = (torch.arange(nodes, dtype=torch.float64) + 0.5) * math.pi / nodes
        half = 2 * math.sqrt(alpha)  # an angle over the bulk: even the edge at 0 is smooth in it
        eigenvalues = 1 + alpha - half * angle.cos()
        density = (half * angle.sin()).square() / (2 * math.pi * eigenvalues) * math.pi / nodes
        return cls(eigenvalues, density, max(0.0, 1 - alpha), density / alpha)

    @classmethod
    def of_data(cls, x: Tensor, x_test: Tensor | None = None) -> LinearDynamics:
        """Of training inputs or features (P, N).

        Args:
            x: with a column of ones where the model has an intercept.
            x_test: new inputs (M, N), whose error is predicted; None: white ones of the variance of ``x``.

        Raises:
            ValueError: for other shapes, or inputs that are all zero.
        """
        if x.ndim != 2 or (x_test is not None and x_test.shape[1:] != x.shape[1:]):
            raise ValueError("inputs must have the shape (samples, features), training and test alike")
        x = x.detach().double()
        _, values, right = torch.linalg.svd(x, full_matrices=False)
        kept = values > values.amax() * max(x.shape) * torch.finfo(x.dtype).eps
        if not kept.any():
            raise ValueError("the inputs are all zero")
        values, right = values[kept], right[kept]
        if x_test is None:
            variance = x.square().mean()
            weights, total = variance.expand(len(values)), variance * x.shape[1]
        else:
            new = x_test.detach().double()
            weights, total = (new @ right.T).square().mean(0), new.square().sum(1).mean()
        frozen = max(0.0, float(total - weights.sum()))
        return cls(values.square(), weights, frozen, torch.full_like(values, 1 / len(x)))

    def test_error(self, times: Tensor, snr: float, inr: float = 0.0) -> Tensor:
        """Squared error on new noisy labels, over the noise variance, (T,).

        Args:
            times: gradient flow on half the summed squared error. Of gradient descent on half the sum, learning rate
                times steps; on ``nn.MSELoss`` over P samples that times 2 / P.
            snr, inr: variances of the teacher's and of the initial weights over that of the noise.
        """
        decay = torch.exp(-self._exponents(times))
        learned = (snr + inr) * decay.square() + (1 - decay).square() / self.eigenvalues
        return learned @ self.weights + self.frozen * (snr + inr) + 1

    def train_error(self, times: Tensor, snr: float, inr: float = 0.0) -> Tensor:
        """Squared error on the noisy training labels, over the noise variance, (T,); arguments of ``test_error``."""
        decay = torch.exp(-2 * self._exponents(times))
        return decay @ (self.shares * (self.eigenvalues * (snr + inr) + 1)) + 1 - self.shares.sum()

    def ridge_error(self, snr: float, strength: float | None = None) -> float:
        """Test error of ridge regression over the noise variance; None: of the best strength, 1 / snr."""
        g = 1 / snr if strength is None else strength
        found = (snr * g**2 + self.eigenvalues) / (self.eigenvalues + g).square()
        return float(found @ self.weights) + self.frozen * snr + 1

    def best_stop(self, snr: float, inr: float = 0.0) -> BestStop:
        """The time with the least test error. The times of single directions lie on both sides of it."""
        best = torch.log1p((snr + inr) * self.eigenvalues) / self.eigenvalues  # where each direction is at its best
        low, high = math.log(float(best.min())), math.log(float(best.max()))
        for _ in range(4):
            times = torch.linspace(low, high, 65, dtype=torch.float64, device=best.device).exp()
            errors = self.test_error(times, snr, inr)
            at, last = int(errors.argmin()), len(times) - 1
            low, high = (math.log(float(times[i])) for i in (max(0, at - 1), min(last, at + 1)))
        return BestStop(float(times[at]), float(errors[at]))

    def _exponents(self, times: Tensor) -> Tensor:
        return times.to(self.eigenvalues)[:, None] * self.eigenvalues


def estimate_snr(x: Tensor, y: Tensor) -> float:
    """Variance of the teacher's weights over that of the noise, by maximal likelihood of the labels.

    Args:
        x: inputs or features (P, N), centred (or with a column of ones).
        y: labels (P,) or (P, K), whose outputs share the ratio.

    Returns:
        between 1e-6 and 1e6 over the largest eigenvalue of the data: at an end where the labels are all noise, or have
        none.

    Raises:
        ValueError: if shapes do not fit.
    """
    if x.ndim != 2 or len(x) != len(y):
        raise ValueError(f"inputs (P, N) and as many labels are needed, got {tuple(x.shape)} and {tuple(y.shape)}")
    y = y.detach().double().reshape(len(y), -1)
    left, values, _ = torch.linalg.svd(x.detach().double(), full_matrices=False)
    scale, power = values.square().amax(), (left.T @ y).square().sum(1)
    outside = (y.square().sum() - power.sum()).clamp_min(0)
    low, high = math.log(1e-6), math.log(1e6)
    for _ in range(4):
        ratios = torch.linspace(low, high, 129, dtype=torch.float64, device=y.device).exp() / scale
        spread = 1 + ratios[:, None] * values.square()
        noise = ((power / spread).sum(1) + outside) / y.numel()
        cost = y.numel() * noise.log() + y.shape[1] * spread.log().sum(1)
        at = int(cost.argmin())
        low, high = (math.log(float(ratios[i] * scale)) for i in (max(0, at - 1), min(128, at + 1)))
    return float(ratios[at])
