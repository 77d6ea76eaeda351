"""MINDE, Franzese, Bounoua, Michiardi 2024."""

import math

import torch
from torch import Tensor

from ...information.minde import diffusion_entropy, diffusion_information, diffusion_joint_information, diffusion_kl
from ...tasks.denoise import Denoise
from ..claim import Claim
from ..joint_laws import CorrelatedGaussians
from ..mutation import Function, Mutation

RHOS, PAIRS, DRAWS, STD = (0.5, 0.8, 0.95, 0.99), 100_000, 4, 0.5
TASK = Denoise()


def run(seed: int) -> dict[str, dict[str, float]]:
    """How far the integrals of exact denoisers are from the truth, relatively."""
    g, errors = torch.Generator().manual_seed(seed), {}
    for rho in RHOS:
        law = CorrelatedGaussians(1, rho)
        x, y = (v.double() for v in law.sample(PAIRS, g))

        def told(x_t: Tensor, t: Tensor, y: Tensor | None = None, law: CorrelatedGaussians = law) -> Tensor:
            return law.noise(x_t, *TASK.levels(t, x_t), y)

        def joint(both: Tensor, t: Tensor, law: CorrelatedGaussians = law) -> Tensor:
            return law.joint_noise(both, *TASK.levels(t, both))

        found = diffusion_information(told, told, x, y, TASK, DRAWS, g)
        errors[f"conditional form, correlation {rho:g}"] = abs(found.value / law.information - 1)
        found = diffusion_joint_information(joint, told, told, x, y, TASK, DRAWS, g)
        errors[f"joint form, correlation {rho:g}"] = abs(found.value / law.information - 1)

    def narrow(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = TASK.levels(t, x_t)
        return sigma * x_t / ((alpha * STD) ** 2 + sigma**2)

    def standard(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = TASK.levels(t, x_t)
        return sigma * x_t / (alpha**2 + sigma**2)

    x = STD * torch.randn(PAIRS, 1, generator=g, dtype=torch.float64)
    divergence = (STD**2 - 1) / 2 - math.log(STD)
    errors["divergence"] = abs(diffusion_kl(narrow, standard, x, TASK, DRAWS, g).value / divergence - 1)
    entropy = math.log(2 * math.pi * math.e * STD**2) / 2
    errors["entropy"] = abs(diffusion_entropy(narrow, x, TASK, 1.0, DRAWS, g).value / entropy - 1)
    return {"errors": errors}


def evenly(_: Function) -> Function:
    """Times drawn evenly, where their weight is left out."""
    return lambda task, count, generator, device: torch.randint(task.steps, (count,), generator=generator)


CLAIM = Claim(
    paper="minde",
    statement="The squared distance of two denoisers' answers, integrated over noise levels, is the mutual information "
    "of correlated Gaussians in its conditional and its joint form, and gives divergence and entropy of a Gaussian.",
    arena=f"exact denoisers of standard normals with correlation {', '.join(f'{r:g}' for r in RHOS)} and of "
    f"N(0, {STD:g}^2); {PAIRS} pairs, {DRAWS} times and noises each, linear schedule of 1000 steps; five seeds",
    quantity="relative error",
    kind="exact",
    tolerance=0.02,  # some five standard errors of the draws; the schedule's cut at 1 % noise costs at most 0.2 %
    run=run,
    mutation=Mutation("times drawn evenly", "wellposed.information.minde:drawn_times", evenly),
)
