"""Nuclear norm regularization of Jacobians, Scarvelis, Solomon 2024."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...smoothness.jacobian_nuclear import jacobian_nuclear_norm, jacobian_nuclear_penalty
from ..claim import Claim
from ..mutation import Function, Mutation

STRENGTH = 1.2


def denoised(seed: int) -> float:
    """Distance of the best penalised product of two 6 x 6 layers from the closed form, over the size of the target.

    Fitted to a random linear map on whitened inputs by L-BFGS; the closed form is the map with its singular values
    lowered by the strength, at least to 0.
    """
    g = torch.Generator().manual_seed(seed)
    target, a, b = (torch.randn(6, 6, generator=g, dtype=torch.float64) for _ in range(3))
    u, s, v = torch.linalg.svd(target)
    closed = u @ torch.diag((s - STRENGTH).clamp(min=0)) @ v
    factors = [a.requires_grad_(), b.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        factors, max_iter=400, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )
    x = torch.zeros(1, 6, dtype=torch.float64)  # the Jacobian of a linear map is the same everywhere

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = jacobian_nuclear_penalty(lambda z: z @ a.T, lambda z: z @ b.T, x, exact=True)
        loss = 0.5 * (b @ a - target).square().sum() + STRENGTH * penalty.sum()
        torch.autograd.backward(loss, inputs=factors)
        return loss.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float((b @ a - closed).detach().norm() / target.norm())


def shortfall(seed: int) -> float:
    """Of a random pair of nets at 50 points: how far the penalty falls short of the nuclear norm, relatively."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, decoder = (
            nn.Sequential(nn.Linear(i, 16), nn.Tanh(), nn.Linear(16, o)).double() for i, o in ((7, 6), (6, 5))
        )
        x = 2 * torch.randn(50, 7, dtype=torch.float64)
    norm = jacobian_nuclear_norm(lambda z: decoder(encoder(z)), x)
    penalty = jacobian_nuclear_penalty(encoder, decoder, x, exact=True).detach()
    return float(((norm - penalty) / norm).clamp(min=0).max())


def decoder_left_out(penalty: Function) -> Function:
    """The penalty on the first factor alone, at its full weight."""

    def mutated(encoder: Callable[[Tensor], Tensor], decoder: object, x: Tensor, exact: bool) -> Tensor:
        found: Tensor = penalty(encoder, lambda z: 0 * z, x, exact=exact)
        return found

    return mutated


CLAIM = Claim(
    paper="jacobian-nuclear-norm",
    statement="Half the squared Frobenius norms of the Jacobians of two factors is never below the nuclear norm of "
    "their composition's Jacobian, and penalising it gives what penalising the nuclear norm gives: on linear maps "
    "soft-thresholding of the singular values.",
    arena="random 6 x 6 maps on whitened inputs as products of two layers, strength 1.2, L-BFGS; random tanh nets "
    "7-6-5 at 50 points",
    quantity="relative error",
    kind="exact",
    tolerance=1e-5,  # L-BFGS in float64 ends at about 1e-9
    run=lambda seed: {"errors": {"soft threshold": denoised(seed), "shortfall": shortfall(seed)}},
    mutation=Mutation(
        words="the second factor's Jacobian left out",
        target="wellposed.smoothness.jacobian_nuclear:jacobian_nuclear_penalty",
        by=decoder_left_out,
    ),
)
