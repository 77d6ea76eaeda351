"""Batch styles standardization, Scalbert, Vakalopoulou, Couzinie-Devy 2023."""

import torch
from torch import Tensor

from ...augmentation.batch_styles import standardize_styles
from ..claim import Claim
from ..mutation import Mutation, nothing

SIZES = ((9, 9), (8, 8), (8, 13))
RATIOS = (0.05, 0.3, 0.7, 1.0)


def square(height: int, width: int, ratio: float) -> Tensor:
    """The low frequencies of the full transform, one by one: those within odd sides nearest to sqrt(ratio)."""
    inside = torch.zeros(height, width, dtype=torch.bool)
    reach = [max(0, round((ratio**0.5 * side - 1) / 2)) for side in (height, width)]
    for i in range(height):
        for j in range(width):
            inside[i, j] = ratio == 1 or (min(i, height - i) <= reach[0] and min(j, width - j) <= reach[1])
    return inside


def errors(seed: int) -> dict[str, float]:
    """Of spectra by the full complex transform, relative to the largest amplitude: what should be equal and is not."""
    g = torch.Generator().manual_seed(seed)
    worst = {"style": 0.0, "phase": 0.0, "rest": 0.0}
    for height, width in SIZES:
        x = torch.rand(6, 3, height, width, generator=g, dtype=torch.float64)
        before = torch.fft.fft2(x)
        for ratio in RATIOS:
            after = torch.fft.fft2(standardize_styles(x, 2, ratio))
            inside, largest = square(height, width, ratio), before.abs().max()
            style = (after.abs() - before[2].abs()).abs() * inside
            phase = (after - torch.polar(after.abs(), before.angle())).abs()
            rest = (after - before).abs() * ~inside
            for name, found in (("style", style), ("phase", phase), ("rest", rest)):
                worst[name] = max(worst[name], float(found.max() / largest))
    return worst


CLAIM = Claim(
    paper="batch-styles-standardization",
    statement="After standardization all images of a batch have the same amplitudes at low frequencies, those of one "
    "of them, while every phase and all higher frequencies are as they were. (That representations generalise to "
    "unseen domains is not checked here.)",
    arena="random batches of 6 images of 9 x 9, 8 x 8 and 8 x 13 pixels with 3 channels, 4 sizes of the rectangle",
    quantity="error relative to the largest amplitude",
    kind="exact",
    tolerance=1e-12,  # a few hundred roundings of float64
    run=lambda seed: {"errors": errors(seed)},
    mutation=Mutation(
        words="images left as they are",
        target="wellposed.augmentation.batch_styles:standardize_styles",
        by=nothing,
    ),
)
