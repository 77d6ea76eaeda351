"""On invariance penalties for risk minimisation, Khezeli et al. 2021."""

import math

import torch

from ...adaptation.irm_gram import irm_gradient_penalty, irm_gram_penalty
from ..claim import Claim, Curve
from ..mutation import Mutation


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """Penalties of the pooled least-squares predictor, its features scaled by c and its head by 1/c."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64).repeat_interleave(500)
    cause = torch.randn(1500, generator=g, dtype=torch.float64)
    y = cause + torch.randn(1500, generator=g, dtype=torch.float64)
    x = torch.stack([cause, y + noise * torch.randn(1500, generator=g, dtype=torch.float64)], 1)
    residual = x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0] - y
    place = torch.arange(3).repeat_interleave(500)
    scales = [1.0, 1e-1, 1e-2, 1e-3]
    return {
        "curve": {
            "scale of the features": scales,
            "Gram penalty": [float(irm_gram_penalty(c * x, residual, place, 3).mean()) for c in scales],
            "squared gradient": [float(irm_gradient_penalty(c * x, residual, place, 3).mean()) for c in scales],
        }
    }


def gain(curve: Curve) -> float:
    """Orders of magnitude by which the squared gradient falls, less those by which the Gram penalty changes."""
    slope, gram = curve["squared gradient"], curve["Gram penalty"]
    return math.log10(slope[0] / slope[-1]) - abs(math.log10(gram[0] / gram[-1]))


CLAIM = Claim(
    paper="irm-v2-gram-penalty",
    statement="The same predictor, not invariant over environments, hides this from the squared gradient by the head "
    "by making its features small and its head large; the Gram penalty sees the same excess risk.",
    arena="x1 -> y -> x2 with noise 0.2, 1 and 2 of x2 in three environments, 500 samples each; least squares on all "
    "of them; features scaled from 1 to 1e-3",
    quantity="orders of magnitude",
    kind="curve",
    margin=3.0,  # half of the 6 that the formulas give
    gain=gain,
    run=run,
    mutation=Mutation(
        "the Gram matrix left out",
        "wellposed.adaptation.irm_gram:irm_gram_penalty",
        lambda original: (
            lambda features, residual, place, count: irm_gradient_penalty(features, residual, place, count)
        ),
    ),
)
