"""Input perturbation, Ning et al. 2023."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...core import Recipe, Step
from ...core.task import Batch
from ...diffusion.input_perturbation import InputPerturbation
from ...tasks.denoise import Denoise
from ..claim import Claim
from ..denoisers import Mixture, ring
from ..mutation import Function, Mutation

GAMMA, BATCHES, ROWS = 0.3, 100, 4000
TASK = Denoise("epsilon", "cosine", steps=100)


class NearBest(nn.Module):
    """The denoiser in closed form, plus four features times weights that start at 0."""

    def __init__(self, data: Mixture) -> None:
        super().__init__()
        self.data, self.weight = data, nn.Parameter(torch.zeros(4, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Best estimate of noise sqrt(1 + gamma^2) times as large as t says, divided by sqrt(1 + gamma^2)."""
        alpha, sigma = TASK.levels(t, x)
        wide = math.sqrt(1 + GAMMA**2)
        noise = (x - alpha * self.data.clean(x, alpha, wide * sigma)) / (wide * sigma)
        features = torch.cat([x, x * (-x.square().sum(1, keepdim=True)).exp()], 1)
        return noise / wide + features @ self.weight


def run(seed: int) -> dict[str, dict[str, float]]:
    """Gradient of the perturbed loss at the closed form, largest of eight weights, in standard errors over batches."""
    errors, g = {}, torch.Generator().manual_seed(seed)
    for name, data in (("one Gaussian", Mixture(torch.zeros(1, 2), 1.7)), ("eight Gaussians", ring())):
        for time in (20, 50, 80):
            model, found = NearBest(data), []
            recipe = Recipe(InputPerturbation(gamma=GAMMA), seed=seed).attach(model, TASK)
            still = torch.optim.SGD(model.parameters(), lr=0.0)
            for _ in range(BATCHES):
                x = data.draw(ROWS, g)
                noise = torch.randn(x.shape, generator=g)
                recipe.step({"x": x, "noise": noise, "t": torch.full((ROWS,), time)}, still)
                assert model.weight.grad is not None
                found.append(model.weight.grad.double())
            gradient = torch.stack(found)
            z = gradient.mean(0) / (gradient.std(0) / math.sqrt(BATCHES))
            errors[f"{name}, time {time}"] = float(z.abs().max())
    return {"errors": errors}


def target_as_well(batch: Function) -> Callable[[InputPerturbation, Batch, Step], Batch]:
    """The perturbed noise as the target, too: a common mistake."""

    def mutated(self: InputPerturbation, given: Batch, step: Step) -> Batch:
        found = batch(self, given, step)
        return {**found, "noise": found["input_noise"]}

    return mutated


CLAIM = Claim(
    paper="ddpm-ip",
    statement="What input perturbation teaches is the ordinary denoiser of noise sqrt(1 + gamma^2) times as large, "
    "divided by sqrt(1 + gamma^2): there the gradient of the perturbed loss vanishes.",
    arena=f"one Gaussian and eight in the plane, whose best denoisers are known; gamma {GAMMA}, three times of the "
    f"cosine schedule, {BATCHES} batches of {ROWS} points",
    quantity="gradient (standard errors)",
    kind="exact",
    tolerance=6.0,  # of Student's t with 99 degrees of freedom: once in a hundred thousand runs, of 240 values each
    run=run,
    mutation=Mutation(
        words="the perturbed noise as the target, too",
        target="wellposed.diffusion.input_perturbation:InputPerturbation.batch",
        by=target_as_well,
    ),
)
