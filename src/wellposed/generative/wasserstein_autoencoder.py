"""Wasserstein autoencoders: codes that are distributed like the prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core import Method, Step, knob
from ..core.modes import evaluating
from ..core.schedules import Scalar
from ..parts.kernels import mmd

__all__ = ["WAE", "code_mmd", "sample_prior"]

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Factors of C, the typical squared distance of two draws of the prior, from near to far."""


def code_mmd(code: Tensor, prior: Tensor, deviation: float = 1.0) -> Tensor:
    """Unbiased squared MMD between codes and draws of the prior, of a sum of inverse multiquadric kernels.

    k(x, y) = sum_s s C / (s C + ||x - y||^2) with C = 2 d deviation^2 and s = 0.1, 0.2, 0.5, 1, 2, 5, 10.

    Args:
        code: (N, d), N at least 2.
        prior: (M, d).
        deviation: standard deviation of the prior, above 0.

    Returns:
        a scalar in at least float32, about 0 where the laws agree, negative half of the time; Tolstikhin et al. 2017
        (arXiv 1711.01558), section 3 and appendix F.
    """
    usual = math.sqrt(2 * code.shape[1]) * deviation
    return mmd(code, prior, "imq", [usual * math.sqrt(s) for s in SCALES])


def sample_prior(
    decoder: nn.Module, rows: int, width: int, *, deviation: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Decode draws of N(0, deviation^2 I): generate.

    Args:
        decoder: takes codes (rows, width); looked at in evaluation mode, without a graph.
        rows: number of samples.
        width: length of a code.
        deviation: standard deviation of the prior.
        generator: on the decoder's device.

    Returns:
        what the decoder makes of them, (rows, ...).
    """
    at = next(decoder.parameters(), torch.empty(0))
    code = deviation * torch.randn(rows, width, generator=generator, device=at.device, dtype=at.dtype)
    with torch.no_grad(), evaluating(decoder):
        made: Tensor = decoder(code)
    return made


class WAE(Method, paper="wasserstein-autoencoder"):
    r"""Wasserstein autoencoder: the codes of all data together are distributed like the prior, so that it generates.

    Computes:
        strength * MMD^2 between the batch's codes (of all ranks) and as many draws of N(0, deviation^2 I), unbiased,
        with inverse multiquadric kernels of seven scales. Beside a deterministic ``Autoencode`` it is the WAE-MMD;
        beside a variational one it acts on the drawn codes, in place of the divergence (beta 0) or with it.

    Formula:
        \min_{Q, G} \mathbb{E} \lVert x - G(Q(x)) \rVert^2 + \lambda\, \mathrm{MMD}_k^2 (Q_Z, P_Z), \qquad P_Z = N(0, \sigma^2 I)
        k(x, y) = \sum_s \frac{s C}{s C + \lVert x - y \rVert^2}, \qquad C = 2 d \sigma^2

    Helps:
        Generation from an autoencoder whose reconstruction stays sharper than a VAE's: the codes are matched to the
        prior as a whole, not each by itself.

    Avoid:
        Expecting better samples than a VAE's: on digits the two were about equal, and only the reconstruction was
        better. Where samples are all that is asked for: draws from a normal law fitted afterwards to the codes of an
        autoencoder without the penalty came closer still, and reconstruction suffered nothing.
        Batches that are small beside the code's width: the estimate is noisy, and 0 in expectation only.

    Defaults:
        strength 10 and deviation 1, the paper's for MNIST (100 for CelebA). The error is summed over elements, as
        ``Autoencode`` does; with a mean it would have to be smaller.

    Cost:
        One pass; distances among 2 B codes.

    Reference:
        Tolstikhin, Bousquet, Gelly, Schoelkopf 2017, Wasserstein Auto-Encoders, arXiv 1711.01558, Eq. 4 and Algorithm
        2. The adversarial variant (WAE-GAN, Algorithm 1) is not built. Loss and gradient were compared with those of
        pythae 0.1.2: they agree to 1e-14 in float64.

    Args:
        deviation: standard deviation of the prior.
        strength: factor of the penalty.
    """  # noqa: E501

    scope = "batch"
    reads = ("code",)
    example = {"model": "autoencoder"}

    deviation: float = knob(1.0, above=0.0)
    strength: Scalar = knob(10.0, low=0.0, grid=(1.0, 10.0, 100.0), log=True)

    def penalty(self, step: Step) -> Tensor:
        code = step.gather(step.out["code"].flatten(1))
        wide = torch.promote_types(code.dtype, torch.float32)
        noise = step.rng(self, shared=True, device=code.device)  # all ranks have all codes, and the same draws
        prior = self.deviation * torch.randn(code.shape, generator=noise, device=code.device, dtype=wide)
        return code_mmd(code, prior, self.deviation)
