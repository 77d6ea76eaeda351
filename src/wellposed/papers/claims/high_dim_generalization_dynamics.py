"""High-dimensional dynamics of generalisation error, Advani, Saxe 2017."""

import math

import torch
from torch import Tensor

from ...theory.generalization_dynamics import LinearDynamics
from ..claim import Claim, Curve
from ..mutation import Mutation, fixed

PARAMETERS, DRAWS, SNR = 100, 20, 5.0
RATE, STEPS = 0.02, 2000
ALPHAS = [0.25, 0.5, 1.0, 2.0, 4.0]


def simulated(alpha: float, g: torch.Generator) -> Tensor:
    """Mean test error of gradient descent after each step, over draws of data, teacher and noise of variance 1."""
    x = torch.randn(DRAWS, round(alpha * PARAMETERS), PARAMETERS, generator=g) / math.sqrt(PARAMETERS)
    teacher = math.sqrt(SNR) * torch.randn(DRAWS, PARAMETERS, 1, generator=g)
    gram = x.mT @ x
    pull = x.mT @ (x @ teacher + torch.randn(DRAWS, x.shape[1], 1, generator=g))
    w, errors = torch.zeros_like(teacher), []
    for _ in range(STEPS):
        w = w + RATE * (pull - gram @ w)
        errors.append((w - teacher).square().sum((1, 2)).mean() / PARAMETERS + 1)
    return torch.stack(errors)


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """Error at the best step and at the last, simulated and predicted."""
    g = torch.Generator().manual_seed(seed)
    names = ("best, simulated", "best, theory", "last, simulated", "last, theory")
    curve: dict[str, list[float]] = {"samples per parameter": ALPHAS, **{name: [] for name in names}}
    for alpha in ALPHAS:
        errors, theory = simulated(alpha, g), LinearDynamics.marchenko_pastur(alpha)
        last = theory.test_error(torch.tensor([RATE * STEPS]), SNR)
        found = (float(errors.min()), theory.best_stop(SNR).error, float(errors[-1]), float(last))
        for name, value in zip(names, found, strict=True):
            curve[name].append(value)
    return {"curve": curve}


def explained(curve: Curve) -> float:
    """Share of the variance of the logarithms of simulated errors, best and last, that the theory explains."""
    seen, said = (
        torch.tensor([*curve[f"best, {kind}"], *curve[f"last, {kind}"]]).log() for kind in ("simulated", "theory")
    )
    return float(1 - (seen - said).square().sum() / (seen - seen.mean()).square().sum())


CLAIM = Claim(
    paper="high-dim-generalization-dynamics",
    statement="The spectrum of random data predicts the test error of gradient descent, at the best time to stop and "
    "after long training, with its peak where samples are as many as parameters.",
    arena=f"linear teacher with {PARAMETERS} parameters, white inputs, SNR 5, {DRAWS} draws a seed; {STEPS} steps of "
    f"gradient descent with rate {RATE} from zero",
    quantity="share of the variance of log test errors that the theory explains",
    kind="curve",
    gain=explained,
    margin=0.5,
    run=run,
    mutation=Mutation(
        words="the spectrum of as many samples as parameters, whatever their number",
        target="wellposed.theory.generalization_dynamics:LinearDynamics.marchenko_pastur",
        by=fixed(alpha=1.0),
    ),
)
