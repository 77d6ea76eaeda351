"""Entropy-SGD, Chaudhari et al. 2017."""

import torch
from torch import Tensor

from ...smoothness.entropy_sgd import EntropySGD, local_entropy_gradient
from ..claim import Claim
from ..mutation import Mutation, fixed

GAMMA, NOISE = 2.0, 1.0  # a temperature of NOISE^2 / 2
CHAINS = 30_000


def quadratic(seed: int) -> float:
    """Of one update with lr 1 on a random quadratic in 5 dimensions: relative error against (H + gamma)^-1 H w."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64)).Q
    h = turn @ torch.diag(0.3 + 4 * torch.rand(5, generator=g, dtype=torch.float64)) @ turn.T
    w = torch.randn(5, generator=g, dtype=torch.float64).requires_grad_()
    start = w.detach().clone()
    optimizer = EntropySGD([w], inner_steps=300, gamma=GAMMA, growth=0.0, noise=0.0, momentum=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * w @ h @ w
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = torch.linalg.solve(h + GAMMA * torch.eye(5, dtype=torch.float64), h @ start)
    return float((start - w.detach() - expected).norm() / expected.norm())


def wells(seed: int) -> float:
    """Of many noisy chains on a random double well at w = -2 and 2: largest relative error of their mean gradient
    against the derivative of the negative local entropy, which is integrated and differentiated numerically."""
    g = torch.Generator().manual_seed(seed)
    a, b, c = (0.5 + torch.rand(3, generator=g, dtype=torch.float64)).tolist()
    grid, temperature = torch.linspace(-8, 8, 20_001, dtype=torch.float64), NOISE**2 / 2

    def entropy(w: float) -> float:
        energy = a * grid**4 / 4 - b * grid**2 / 2 + c * grid + GAMMA / 2 * (grid - w) ** 2
        return temperature * float(torch.logsumexp(-energy / temperature, 0))

    at = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    found = local_entropy_gradient(
        lambda x: a * x**3 - b * x + c, at[:, None].expand(2, CHAINS), GAMMA, 600,
        lr=0.01, noise=NOISE, average=0.0, generator=g,
    ).mean(1)  # fmt: skip
    exact = torch.tensor([(entropy(w - 1e-4) - entropy(w + 1e-4)) / 2e-4 for w in at.tolist()], dtype=torch.float64)
    return float(((found - exact) / exact).abs().max())


CLAIM = Claim(
    paper="entropy-sgd",
    statement="The gradient of the negative local entropy is gamma times the distance to the mean of the Gibbs measure "
    "around the weights, so that a chain which samples it gives the gradient.",
    arena=f"random quadratics in 5 dimensions, against linear algebra; random double wells in one, {CHAINS} chains of "
    "600 steps at temperature 0.5, against the local entropy by quadrature and finite differences",
    quantity="relative error of the gradient",
    kind="exact",
    tolerance=0.05,  # the means of the chains have a standard error of 0.4 %, and steps of 0.01 a bias of 1 to 2 %
    run=lambda seed: {"errors": {"quadratic": quadratic(seed), "double well": wells(seed)}},
    mutation=Mutation(
        words="the chain not tied to the weights (gamma 0 in its steps)",
        target="wellposed.smoothness.entropy_sgd:langevin_step_",
        by=fixed(gamma=0.0),
    ),
)
