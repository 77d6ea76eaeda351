"""Latent quantization: every latent takes one of a few learned values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import Scalar
from ..core.task import batch_size
from ..parts.codebooks import Codebook, Quantized, even_codes

__all__ = ["LatentQuantization", "LatentQuantizer", "codebook_groups"]


class LatentQuantizer(nn.Module):
    """The last layer of an encoder: each latent becomes the nearest of its own few values, and gradients pass.

    Train the values and keep the encoder close to them by ``LatentQuantization``; without it the values stay.

    Args:
        latents: numbers in a code.
        values: how many values each may take, at least 2.
        low, high: the values' range at first; they are spaced evenly.

    Raises:
        ValueError: for fewer than 2 values, or an empty range.
    """

    def __init__(self, latents: int, values: int = 8, low: float = -0.5, high: float = 0.5) -> None:
        super().__init__()
        if latents < 1 or values < 2:
            raise ValueError(
                f"LatentQuantizer: needs at least 1 latent and 2 values, got {latents} latents and {values} values"
            )
        if not low < high:
            raise ValueError(f"LatentQuantizer: low must be below high, got {low:g} and {high:g}")
        self.book = Codebook(even_codes(latents, values, low, high))

    def forward(self, z: Tensor) -> Tensor:
        """(..., latents) to the nearest values, in the same shape."""
        values: Tensor = self.book(z).values
        return values

    def indices(self, z: Tensor) -> Tensor:
        """Which value each latent takes, (..., latents)."""
        found: Quantized = self.book(z)
        return found.indices


def codebook_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: codebooks without weight decay, which would pull their values to 0, and the
    rest with it. Frozen parameters are left out."""
    codes = {id(p) for m in model.modules() if isinstance(m, Codebook) for p in m.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in codes], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in codes], "weight_decay": 0.0},
    ]


class LatentQuantization(Method, paper="latent-quantization"):
    r"""Latent quantization: a code whose every latent has a few learned values of its own.

    Computes:
        With a ``LatentQuantizer`` behind the encoder, strength times the mean squared distance of the latents from
        their values: once to move the values, once, times ``commitment``, to move the encoder. Any ``Codebook`` of the
        model counts, vector codes too; the number is averaged over codebooks.

    Formula:
        z_j = \arg\min_{v \in V_j} | \hat z_j - v |
        \frac{\lambda}{L} \sum_j \left( (\mathrm{sg}(\hat z_j) - z_j)^2 + \beta (\hat z_j - \mathrm{sg}(z_j))^2 \right)

    Helps:
        Disentangled codes of data made of a few independent discrete sources, which then lie on a grid; see Avoid for
        how to measure it.

    Avoid:
        Comparing the modularity of a quantised code with that of a continuous one by two different estimators, as the
        paper does: on three sources it was 0.57 for the quantised code, and for a plain autoencoder's 0.08 by nearest
        neighbours but 0.48 cut into as many values. Weight decay, which the paper holds to be essential: 1.0 added
        nothing there. Weight decay on the values themselves: see ``codebook_groups``.

    Defaults:
        strength 0.01 and commitment 1, the paper's 0.01 and 0.01; 8 to 12 values a latent, and twice as many latents as
        there may be sources.

    Cost:
        One pass; latents x values comparisons a sample.

    Reference:
        Hsu, Dorrell, Whittington, Wu, Finn 2023, Disentanglement via Latent Quantization, arXiv 2305.18378. Their two
        terms are means over latents, so that their number does not change the balance. The scores are in ``infomec``.
        Values, passed gradient and error equal those of vector-quantize-pytorch 1.32 (compared by hand, odd numbers of
        values); there, however, no gradient reaches the values.

    Args:
        commitment: weight of the encoder's term beside the values' term.
        strength: factor of both.
    """

    stops = True

    commitment: float = knob(1.0, low=0.0)
    strength: Scalar = knob(0.01, low=0.0, grid=(0.001, 0.01, 0.1), log=True)
    example = {"model": "quantized"}

    def setup(self, model: nn.Module, task: Task) -> None:
        self.taps = tuple(name for name, m in model.named_modules() if isinstance(m, Codebook))
        if not self.taps:
            raise RecipeError(
                "LatentQuantization trains the values of codebooks, and the model has none: put a "
                "LatentQuantizer(latents) behind the encoder"
            )

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        found: list[Quantized] = [step.taps[name] for name in self.taps]
        samples = batch_size(step.batch)
        rows = [q.quantization_error() + self.commitment * q.commitment_error() for q in found]
        return torch.stack([_of_samples(errors, samples) for errors in rows]).mean(0)


def _of_samples(errors: Tensor, samples: int) -> Tensor:
    """Mean for each sample, (B,), of a codebook that got vectors (B * T, D) in their order; else the mean of all."""
    if len(errors) % samples:
        return errors.mean().expand(samples)
    return errors.view(samples, -1).mean(1)
