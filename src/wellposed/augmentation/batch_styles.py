"""Batch styles standardization: all images of a batch in the style of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import Method, Step, knob
from ..core.task import Batch
from ._mixing import CPU

__all__ = ["BatchStyles", "low_frequencies", "standardize_styles"]


def low_frequencies(height: int, width: int, ratio: float) -> Tensor:
    """Which frequencies of ``torch.fft.rfft2`` lie in the centred rectangle of this share of the area.

    Its sides are odd, so that it is symmetric about the zero frequency; at 1 it is everything, at 0 nothing.

    Returns:
        booleans (height, width // 2 + 1), on the CPU.
    """
    if ratio <= 0:
        return torch.zeros(height, width // 2 + 1, dtype=torch.bool)
    if ratio >= 1:
        return torch.ones(height, width // 2 + 1, dtype=torch.bool)
    rows, columns = (max(0, round((ratio**0.5 * side - 1) / 2)) for side in (height, width))
    down = torch.fft.fftfreq(height, 1 / height).abs().round() <= rows
    across = torch.fft.rfftfreq(width, 1 / width).round() <= columns
    return down[:, None] & across


def standardize_styles(x: Tensor, donor: int | Tensor, ratio: float) -> Tensor:
    """Images with the low-frequency amplitudes of one of them, and phases of their own.

    Args:
        x: (B, ..., H, W), real; each channel by itself.
        donor: index of the image whose amplitudes all take; a tensor (B,) of indices for a donor each.
        ratio: share of the area of the spectrum that is replaced, from the middle, in [0, 1].

    Returns:
        shaped like ``x``, not clipped to any range; the donor itself is unchanged.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    spectrum = torch.fft.rfft2(x.to(wide))
    amplitude, phase = spectrum.abs(), spectrum.angle()
    mask = low_frequencies(x.shape[-2], x.shape[-1], ratio).to(x.device)
    changed = torch.polar(torch.where(mask, amplitude[donor], amplitude), phase)
    return torch.fft.irfft2(changed, s=x.shape[-2:]).to(x.dtype)


class BatchStyles(Method, paper="batch-styles-standardization"):
    r"""Batch styles standardization: every view of a batch has one style, another for each view.

    Computes:
        The Fourier amplitudes of all images in a centred rectangle of low frequencies become those of one image of the
        batch, drawn for each view; phases stay. The rectangle's share of the area is uniform on [low, high].

    Formula:
        x_i' = F^{-1}\left( \left( (1 - M_r) A_i + M_r A_j \right) e^{\mathrm{i} P_i} \right), \quad r \sim U[low, high]

    Helps:
        Contrastive learning from images of several domains (brightness, contrast, illumination), where style would
        tell samples apart: negatives then share it, and views differ in it.

    Avoid:
        Where brightness or contrast is what is to be recognised: any share above 0 equalises the mean. A single image
        has no donor but itself. Donors of their own for each image did as well on digits, so that the gain is not
        shown to come from standardising.

    Defaults:
        shares from 0 to 1, our choice; the paper fixes both by data set.

    Cost:
        One pass; a Fourier transform and back.

    Reference:
        Scalbert, Vakalopoulou, Couzinie-Devy 2023, Towards domain-invariant Self-Supervised Learning with Batch Styles
        Standardization, arXiv 2303.06088, section 3. Shares are of area, as in its supplement, so a side is sqrt(r) of
        the image's; sides are odd here, since an even one leaves an imaginary part.

    Args:
        keys: entries of the batch that are views, each with a donor of its own.
        low: smallest share of the spectrum's area that is replaced, in [0, 1].
        high: largest.
    """

    null = {"low": 0.0, "high": 0.0}
    exact = False  # the donor is one of the microbatch
    example = {"model": "conv"}

    keys: Sequence[str] = ("x",)
    low: float = knob(0.0, low=0.0, high=1.0)
    high: float = knob(1.0, low=0.0, high=1.0, grid=(0.3, 0.6, 1.0))

    def check(self) -> None:
        if self.low > self.high:
            raise ValueError(f"BatchStyles: low must be at most high, got {self.low:g} and {self.high:g}")

    def batch(self, batch: Batch, step: Step) -> Batch:
        if self.high == 0:
            return batch
        changed = {}
        for key in self.keys:
            x = batch.get(key)
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 3:
                got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"BatchStyles needs images (B, ..., H, W) of real numbers in '{key}', got {got}")
            generator = step.rng(self, key, device=CPU)
            donor = int(torch.randint(len(x), (), generator=generator))
            share = self.low + (self.high - self.low) * float(torch.rand((), generator=generator))
            changed[key] = standardize_styles(x, donor, share)
        return {**batch, **changed}
