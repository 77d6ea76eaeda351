"""Min-SNR weighting, Hang et al. 2023."""

import torch
from torch import Tensor

from ...diffusion.min_snr import MinSNR
from ...tasks.denoise import Denoise
from ..claim import Claim
from ..mutation import Mutation, fixed

STEPS, GAMMA = 1000, 5.0


def answers(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """What each kind of model says that takes this clean sample and this noise for true."""
    return {"epsilon": noise, "x0": x, "v": alpha * noise - sigma * x, "velocity": noise - x}


def run(seed: int) -> dict[str, dict[str, float]]:
    """How far the losses of one estimate, off by a random error, stray from min(SNR, gamma) |error|^2, relatively.

    By a loop of one's own and by the task, at all times, whatever the model predicts.
    """
    g = torch.Generator().manual_seed(seed)
    x, noise, wrong = (torch.randn(STEPS, 3, generator=g, dtype=torch.float64) for _ in range(3))
    errors = {}
    for schedule, kinds in (
        ("linear", ("epsilon", "x0", "v")),
        ("cosine", ("epsilon", "x0", "v")),
        ("flow", ("velocity",)),
    ):
        t = torch.arange(STEPS)
        if schedule == "flow":
            t = (t.double() + 1) / (STEPS + 1)
        for kind in kinds:
            task = Denoise(kind, schedule, weighting=MinSNR(GAMMA), steps=STEPS)  # type: ignore[arg-type]
            alpha, sigma = task.levels(t, x)
            snr = (alpha / sigma).square().flatten()
            wanted = snr.clamp(max=GAMMA) * wrong.square().mean(1)
            right = answers(x, noise, alpha, sigma)[kind]
            said = answers(x + wrong, noise - alpha / sigma * wrong, alpha, sigma)[kind]
            own = MinSNR(GAMMA).weight(snr, kind) * (said - right).square().mean(1)  # type: ignore[arg-type]
            by_task = task.loss({"prediction": said}, {"x": x, "noise": noise, "t": t})
            for name, found in (("own loop", own), ("task", by_task)):
                errors[f"{schedule}, {kind}, {name}"] = float(((found - wanted) / wanted).abs().max())
    return {"errors": errors}


CLAIM = Claim(
    paper="min-snr-weighting",
    statement="Min-SNR weights make one objective of whatever a denoiser predicts: min(SNR, gamma) times the squared "
    "error of the clean sample it amounts to, at every time.",
    arena=f"random samples, noise and errors in float64 at {STEPS} times of the linear and the cosine schedule and of "
    "the straight path; a loop of one's own and Denoise",
    quantity="relative error",
    kind="exact",
    tolerance=1e-10,  # where alpha is 5e-5, a rounding of 1e-16 of the noise is 2e-12 of the error
    run=run,
    mutation=Mutation(
        words="the weight of the noise's error for every prediction",
        target="wellposed.diffusion.snr_weights:SNRWeight.weight",
        by=fixed(prediction="epsilon"),
    ),
)
