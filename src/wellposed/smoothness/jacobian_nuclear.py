"""The nuclear norm of a network's Jacobian, without singular values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ..parts.curvature import twice_differentiable
from ._inputs import real_input, wide
from .jacobian_reg import jacobian_frobenius

__all__ = ["JacobianNuclear", "jacobian_nuclear_norm", "jacobian_nuclear_penalty"]


def jacobian_nuclear_norm(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Sum of the singular values of each sample's Jacobian, with a gradient for each output and an SVD; a reference.

    Args:
        f: (B, ...) to (B, ...), samples apart.
        x: floating point.

    Returns:
        shape (B,), no gradient.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        rows = f(leaf).reshape(len(x), -1)
        slopes = [torch.autograd.grad(rows[:, k].sum(), leaf, retain_graph=True)[0] for k in range(rows.shape[1])]
    return torch.linalg.svdvals(torch.stack([s.flatten(1) for s in slopes], 1)).sum(1)


def jacobian_nuclear_penalty(
    encoder: Callable[[Tensor], Tensor],
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma: float = 0.1,
    n: int = 1,
    *,
    exact: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An upper bound of the nuclear norm of the Jacobian of decoder(encoder(x)), attained by the best factors.

    Args:
        encoder, decoder: (B, ...) to (B, ...), samples apart; the values between them are at least as many as the rank
            the composition should have.
        x: floating point.
        sigma: of the Gaussian noise whose effect stands for the Jacobian, relative error of order sigma^2; in float32
            not below about 0.001, where rounding takes over.
        n: draws of the noise.
        exact: Jacobians by a gradient for each output in place of noise, twice differentiable.
        generator: of the noise.

    Returns:
        (||J encoder(x)||_F^2 + ||J decoder(encoder(x))||_F^2) / 2, shape (B,), differentiable in both through
        encoder(x); Scarvelis, Solomon 2024 (arXiv 2405.14544), Theorem 3.1 and section 4.2.
    """
    if exact:
        with twice_differentiable():
            x = x if x.requires_grad else x.detach().requires_grad_()
            between = encoder(x)
            return 0.5 * (jacobian_frobenius(between, x) + jacobian_frobenius(decoder(between), between))
    between = encoder(x)
    out = decoder(between)
    total = torch.zeros(len(x), dtype=wide(out.dtype), device=x.device)
    for _ in range(n):
        total = total + _squares(encoder(x + sigma * _noise(x, generator)) - between)
        total = total + _squares(decoder(between + sigma * _noise(between, generator)) - out)
    return total / (2 * n * sigma**2)


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _squares(difference: Tensor) -> Tensor:
    rows = difference.reshape(len(difference), -1)  # of one number a sample, too
    return rows.to(wide(rows.dtype)).square().sum(1)


class JacobianNuclear(Method, paper="jacobian-nuclear-norm"):
    r"""Nuclear norm of the Jacobian: a function that varies in few directions at every point.

    Computes:
        The network is cut at a layer into h and then g. strength times half the sum of ||J h(x)||_F^2 and
        ||J g(h(x))||_F^2, each estimated by how far Gaussian noise of sd sigma at its input moves its output, squared,
        over sigma^2. Over all ways to write a function as g after h the smallest such sum is the nuclear norm of its
        Jacobian, so that singular values are shrunk by a constant, and small ones vanish.

    Formula:
        \|J_{g \circ h}(x)\|_* \le \frac{1}{2} \left( \|J_h(x)\|_F^2 + \|J_g(h(x))\|_F^2 \right)
        \|J_h(x)\|_F^2 \approx \frac{1}{\sigma^2} E_{\epsilon \sim N(0, \sigma^2 I)} \|h(x + \epsilon) - h(x)\|^2

    Helps:
        Denoising and representations in which few directions of the input should matter. On linear layers with
        whitened inputs it is singular-value soft-thresholding, exactly.

    Avoid:
        Layers narrower than the rank that is wanted, which bound it by themselves. Half precision, whose rounding
        passes for slope. With BatchNorm the noise of other samples is felt through the statistics. Token inputs.

    Defaults:
        strength 0.001 and sigma 0.1, our choice for inputs in [0, 1]; one draw, as in the paper.

    Cost:
        3 passes: two more forward passes, and their backwards.

    Reference:
        Scarvelis, Solomon 2024, Nuclear Norm Regularization for Deep Learning, arXiv 2405.14544, Theorem 3.1 and its
        denoising-style estimator.

    Args:
        layer: name of the submodule whose output is h(x), and which the network runs once; the first tensor where it
            returns a tuple.
        sigma: sd of the noise, in units of the input and of h.
        strength: factor of the penalty.
    """

    reads = ("x",)
    exact = False  # every microbatch draws its own noise
    example = {"layer": "0"}

    layer: str = knob()
    sigma: float = knob(0.1, above=0.0)
    strength: Scalar = knob(0.001, low=0.0, grid=(0.0001, 0.001, 0.01), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.taps = (self.layer,)

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        x, between, key = real_input(step, "JacobianNuclear"), _first(step.taps[self.layer]), step.task.yields[0]
        generator = step.rng(self)
        seen: list[Tensor] = []

        def record(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(_first(output))

        def shift(module: nn.Module, args: Any, output: Any) -> Any:
            moved = _first(output) + self.sigma * _noise(between, generator)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        # Not through a compiled wrapper, which does not see the hooks.
        cut = step.model.get_submodule(self.layer)
        with cut.register_forward_hook(record):
            step.forward(step.model, x=x + self.sigma * _noise(x, generator))
        if len(seen) != 1:
            raise ValueError(
                f"JacobianNuclear needs a layer that runs once a pass, and '{self.layer}' ran {len(seen)} times"
            )
        with cut.register_forward_hook(shift):
            out = step.forward(step.model)[key]
        return (_squares(seen[0] - between) + _squares(out - step.out[key])) / (2 * self.sigma**2)

    def passes(self) -> float:
        return 3.0


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
