"""QReg, AskariHemmat et al. 2022."""

import torch
import torch.nn.functional as F
from torch import nn

from ...quantization.qreg import QReg
from ..arenas import NOISY_DIGITS, Sample, quality
from ..claim import Claim
from ..mutation import Mutation


def measure(model: nn.Module, sample: Sample) -> dict[str, float]:
    """Quality, and test loss minus training loss (nats)."""
    found = quality(model, sample)
    with torch.no_grad():
        training = float(F.cross_entropy(model(sample.x), sample.y))
    return found | {"generalization gap": found["nll"] - training}


CLAIM = Claim(
    paper="qreg",
    statement="With 40 % wrong labels a net trained with 3-bit weights has a smaller gap between test and training "
    "loss than one with weights in full precision.",
    arena=NOISY_DIGITS.words + "; weights of all layers rounded to 3 bits",
    quantity="generalization gap",
    direction="lower",
    margin=0.1,  # nats; less than a third of the 0.35 seen on other seeds
    run=lambda seed: NOISY_DIGITS.pair(seed, QReg(bits=3), measure),
    mutation=Mutation(
        "no rounding", "wellposed.quantization.qreg:dequantized", lambda original: lambda w, bits, symmetric: w
    ),
)
