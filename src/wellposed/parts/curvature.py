"""Curvature without matrices: Hessian-vector products, top eigenvalues, spectra, traces and diagonals.

A vector is a mapping of parameter names to tensors; an operator is any linear symmetric function of vectors, a Hessian
or another (Gauss-Newton, Fisher). Not everything can be differentiated twice: a loss given as a function is computed
inside ``twice_differentiable``; gradients that you compute yourself should be, too.
Not supported: models compiled by ``torch.compile``, and custom kernels whose backward is not differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.norms import global_norm

Vector = Mapping[str, Tensor]
Operator = Callable[[dict[str, Tensor]], Vector]


@contextmanager
def twice_differentiable(recurrent: bool = True) -> Iterator[None]:
    """Kernels that have second derivatives: attention in plain arithmetic, recurrent nets without cuDNN.

    Args:
        recurrent: whether cuDNN, which convolutions are faster with, is turned off as well.
    """
    cudnn = torch.backends.cudnn
    was = cudnn.enabled
    with sdpa_kernel(SDPBackend.MATH):
        cudnn.enabled = was and not recurrent
        try:
            yield
        finally:
            cudnn.enabled = was


def gradient(loss: Callable[[], Tensor], params: Vector) -> dict[str, Tensor]:
    """Gradient of a scalar, with its graph, so that products of one loss share the first two passes.

    Args:
        loss: computes the scalar from ``params``, without randomness of its own.
        params: that require gradients, tied ones once (as ``model.named_parameters()`` gives them).

    Returns:
        by name; zeros for parameters that did not take part.
    """
    with twice_differentiable():
        grads = torch.autograd.grad(loss(), list(params.values()), create_graph=True, materialize_grads=True)
    return dict(zip(params, grads, strict=True))


def hvp(of: Callable[[], Tensor] | Vector, params: Vector, v: Vector, create_graph: bool = False) -> dict[str, Tensor]:
    """Hessian times vector, by differentiating the gradient along ``v``; exact up to rounding.

    Args:
        of: a function that computes the scalar loss, or its gradients with their graph (see ``gradient``); it is kept.
        params: the Hessian's coordinates.
        v: by the names of ``params``; what it leaves out counts as zero.
        create_graph: whether the product itself will be differentiated.

    Returns:
        by name, of the shapes and types of ``params``; about the cost of one more forward and backward.
    """
    grads = gradient(of, params) if callable(of) else of
    # A gradient that does not depend on the weights, a linear layer's say, has no graph and adds nothing.
    pairs = [(grads[n], v[n]) for n in grads if n in v and grads[n].requires_grad]
    if not pairs:
        return {n: torch.zeros_like(p) for n, p in params.items()}
    product = torch.autograd.grad(
        [g for g, _ in pairs], list(params.values()), [a.to(g) for g, a in pairs],
        retain_graph=True, create_graph=create_graph, materialize_grads=True,
    )  # fmt: skip
    return dict(zip(params, product, strict=True))


def hessian(of: Callable[[], Tensor] | Vector, params: Vector) -> Operator:
    """The Hessian as an operator that keeps one graph for all its products."""
    grads = gradient(of, params) if callable(of) else of
    return lambda v: hvp(grads, params, v)


@torch.no_grad()
def inner(a: Vector, b: Vector) -> Tensor:
    """Inner product over all names, at least in float32; names that only one side has count as zero."""
    parts = [torch.linalg.vecdot(*(_wide(t[n]).flatten() for t in (a, b))) for n in a if n in b]
    return torch.stack([p.to(parts[0]) for p in parts]).sum() if parts else torch.zeros(())


@torch.no_grad()
def unit(v: Vector) -> dict[str, Tensor]:
    """``v`` over its norm; zero stays zero."""
    norm = global_norm(v.values())
    factor = torch.where(norm > 0, 1 / norm, 0.0)
    return {n: (_wide(a) * factor.to(a.device)).to(a.dtype) for n, a in v.items()}


@torch.no_grad()
def gaussian(like: Vector, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """A standard normal vector, the usual start of iterations."""
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device) for n, p in like.items()}


@dataclass(frozen=True)
class Eigenpair:
    """What power iteration found.

    Attributes:
        value: the Rayleigh quotient of ``vector``.
        vector: unit.
        residual: ||A vector - value vector||, which bounds the distance to the nearest eigenvalue; that iterations
            stall bounds nothing.
        next: A vector, one iteration ahead: the start of a warm continuation.
    """

    value: Tensor
    vector: dict[str, Tensor]
    residual: Tensor
    next: dict[str, Tensor]


@torch.no_grad()
def power_iteration(operator: Operator, start: Vector, iterations: int = 1) -> Eigenpair:
    """The eigenvalue largest in magnitude, without waiting for the device.

    For a warm start hand ``next`` in as the next ``start``: while the operator changes slowly, one iteration a step
    follows it.

    Args:
        operator: symmetric, linear; called with gradients enabled.
        start: not zero, not orthogonal to what is sought.
        iterations: products with the operator, at least 1.

    Raises:
        ValueError: for fewer than one iteration.
    """
    _at_least_one(iterations, "iterations")
    ahead: Vector = start
    for _ in range(iterations):
        vector = unit(ahead)
        with torch.enable_grad():
            product = {n: a.detach() for n, a in operator(vector).items()}
        moves = global_norm(product.values()) > 0  # where the operator is zero, a zero start would stay so for good
        ahead = {n: torch.where(moves.to(a.device), a, vector[n]) for n, a in product.items()}
    value = inner(vector, product)
    off = [_wide(product[n]) - value.to(a.device) * _wide(a) for n, a in vector.items()]
    return Eigenpair(value, vector, global_norm(off), dict(ahead))


@dataclass(frozen=True)
class Ritz:
    """What Lanczos found.

    Attributes:
        values: estimates of eigenvalues, ascending, (m,).
        residuals: ||A v - value v|| of each, (m,): an upper bound of its distance to the nearest eigenvalue.
        weights: squared overlap of each with the start, (m,), sum 1: sum of weights f(values) is the m-point Gauss
            quadrature of start' f(A) start, the spectral density where the start is random.
    """

    values: Tensor
    residuals: Tensor
    weights: Tensor
    basis: Tensor
    rotation: Tensor
    like: dict[str, Tensor]

    def vector(self, i: int = -1) -> dict[str, Tensor]:
        """The unit vector of ``values[i]``; by default of the largest."""
        return _unflat(self.rotation[:, i].to(self.basis) @ self.basis, self.like)


@torch.no_grad()
def lanczos(operator: Operator, start: Vector, steps: int) -> Ritz:
    """Both ends of a symmetric operator's spectrum, and its density, from ``steps`` products.

    With full reorthogonalisation (Paige's loss of orthogonality would show converged values several times), so it keeps
    ``steps`` vectors. Ends early, after m < steps products, where the start spans an invariant subspace. Reaches a
    given residual of the top eigenvalue in far fewer products than ``power_iteration``.

    Args:
        operator: symmetric, linear.
        start: not zero.
        steps: products with the operator, at least 1.

    Raises:
        ValueError: for fewer than one step, or a start of zero.
    """
    _at_least_one(steps, "steps")
    like = {n: a.detach() for n, a in start.items()}
    q = _flat(like)
    norm = torch.linalg.vector_norm(q)
    if not norm > 0:
        raise ValueError("lanczos needs a start that is not zero")
    basis, diagonal, off = [q / norm], [], []
    for _ in range(steps):
        with torch.enable_grad():
            product = operator(_unflat(basis[-1], like))
        w = _flat({n: product[n].detach() for n in like})
        diagonal.append(torch.dot(basis[-1], w))
        kept = torch.stack(basis)
        scale = torch.linalg.vector_norm(w)
        for _ in range(2):  # twice is enough
            w = w - (kept @ w) @ kept
        off.append(torch.linalg.vector_norm(w))
        # What is left of an invariant subspace is rounding, some eps times the product's length.
        if len(basis) == steps or not off[-1] > 100 * torch.finfo(w.dtype).eps * scale:
            break
        basis.append(w / off[-1])
    kept, alpha, beta = torch.stack(basis), torch.stack(diagonal), torch.stack(off)
    values, rotation = torch.linalg.eigh(
        torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)
    )  # fmt: skip
    return Ritz(values, beta[-1] * rotation[-1].abs(), rotation[0].square(), kept, rotation, like)


@torch.no_grad()
def rademacher(like: Vector, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Independent signs, +1 and -1 with probability 1/2 each, in the types of ``like``.

    One 64-bit draw makes 64 of them, about 20 times as fast as a draw for each.
    """
    first = next(iter(like.values()))
    sizes = [p.numel() for p in like.values()]
    words = torch.empty((sum(sizes) + 63) // 64, dtype=torch.int64, device=first.device)
    words.random_(-(2**63), None, generator=generator)
    byte, bit = torch.arange(256, device=first.device), torch.arange(8, device=first.device)
    table = (2 * (byte[:, None] >> bit & 1) - 1).to(torch.promote_types(first.dtype, torch.float32))
    signs = table[words.view(torch.uint8).int()].flatten()[: sum(sizes)]
    return _unflat(signs, like)


@torch.no_grad()
def hutchinson_trace(
    operator: Operator, like: Vector, samples: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Unbiased estimates z' A z of the trace with random signs z, one a sample.

    Returns:
        shape (samples,): their mean is the estimate, their scatter its standard error. Each has variance
        2 (||A||_F^2 - sum_i A_ii^2) for symmetric A, so that a diagonal is exact.

    Raises:
        ValueError: for fewer than one sample.
    """
    _at_least_one(samples, "samples")
    return torch.stack([inner(z, product) for z, product in _probes(operator, like, samples, generator)])


@torch.no_grad()
def hutchinson_diagonal(
    operator: Operator, like: Vector, samples: int = 1, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Unbiased estimate of the diagonal: the mean of z * (A z) over random signs z.

    The variance of entry i is sum over j != i of A_ij^2, over ``samples``. Bekas, Kokiopoulou, Saad 2007.

    Raises:
        ValueError: for fewer than one sample.
    """
    _at_least_one(samples, "samples")
    total = {n: torch.zeros_like(p, requires_grad=False) for n, p in like.items()}
    for z, product in _probes(operator, like, samples, generator):
        torch._foreach_addcmul_(list(total.values()), [z[n] for n in total], [product[n] for n in total], 1 / samples)
    return total


def _probes(
    operator: Operator, like: Vector, samples: int, generator: torch.Generator | None
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    for _ in range(samples):
        z = rademacher(like, generator)
        with torch.enable_grad():
            product = operator(z)
        yield z, {n: a.detach() for n, a in product.items()}


def _at_least_one(count: int, name: str) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")


def _wide(a: Tensor) -> Tensor:
    return a.to(torch.promote_types(a.dtype, torch.float32))


def _flat(v: Vector) -> Tensor:
    first = _wide(next(iter(v.values())))
    return torch.cat([_wide(a).to(first.device).flatten() for a in v.values()])


def _unflat(flat: Tensor, like: Vector) -> dict[str, Tensor]:
    pieces = torch.split(flat, [a.numel() for a in like.values()])
    return {n: piece.view(a.shape).to(a) for piece, (n, a) in zip(pieces, like.items(), strict=True)}
