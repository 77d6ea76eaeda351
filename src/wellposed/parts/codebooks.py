"""Codebooks: vectors (or single numbers) replaced by the nearest of a few learned codes, with gradients that pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.parallel import gather
from .quantizers import straight_through

WIDEST = 2**24  # distances held at once in the search for the nearest code
FORGOTTEN = 1e-30  # a count so small that its quotient would lose digits


def nearest_codes(x: Tensor, codes: Tensor) -> Tensor:
    """Which code is nearest, without gradient; the first of several equally near.

    By the differences themselves: an expansion into products would lose the digits that tell near codes apart.

    Args:
        x: (..., G, D), one vector for each of G codebooks.
        codes: (G, K, D).

    Returns:
        indices (..., G), int64.
    """
    groups, count, size = codes.shape
    flat, codes = x.detach().reshape(-1, groups, size), codes.detach()
    dtype = torch.promote_types(torch.promote_types(flat.dtype, codes.dtype), torch.float32)
    flat, codes = flat.to(dtype).transpose(0, 1), codes.to(dtype)
    found = [
        torch.cdist(part, codes, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
        for part in torch.split(flat, max(1, WIDEST // (groups * count)), 1)
    ]
    return torch.cat(found, 1).T.contiguous().view(x.shape[:-1])  # torch.compile takes what it selects for contiguous


def look_up(codes: Tensor, index: Tensor) -> Tensor:
    """The codes (..., G, D) at indices (..., G) of codebooks (G, K, D), with a gradient by the codes."""
    return codes[torch.arange(len(codes), device=codes.device), index]


def usage(index: Tensor, count: int) -> Tensor:
    """Share of each codebook's codes that occur: indices (..., G) of ``count`` codes to (G,)."""
    return (_frequencies(index, count) > 0).double().mean(-1)


def perplexity(index: Tensor, count: int) -> Tensor:
    """exp of the entropy of the codes' frequencies, (..., G) to (G,): 1 if one is used, ``count`` if all equally."""
    return torch.special.entr(_frequencies(index, count)).sum(-1).exp()


def _frequencies(index: Tensor, count: int) -> Tensor:
    counts = _sums(torch.ones_like(index, dtype=torch.float64).unsqueeze(-1), index, count).squeeze(-1)
    return counts / index[..., 0].numel()


def _sums(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum of what has each code: values (..., G, D) at indices (..., G) to (G, K, D)."""
    groups, size = values.shape[-2:]
    places = index.reshape(-1, groups) + count * torch.arange(groups, device=index.device)
    empty = values.new_zeros(groups * count, size)
    return empty.index_add_(0, places.flatten(), values.reshape(-1, size)).view(groups, count, size)


# ---- where codes come from
def even_codes(groups: int, count: int, low: float = -0.5, high: float = 0.5) -> Tensor:
    """``count`` numbers at equal distances for each of ``groups`` codebooks, (groups, count, 1)."""
    return torch.linspace(low, high, count).view(1, -1, 1).repeat(groups, 1, 1)


def codes_of(x: Tensor, count: int, groups: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Codes that are vectors of the data: rows of x (N, groups * D) drawn without replacement, (groups, count, D).

    Raises:
        ValueError: if there are fewer rows than codes.
    """
    if len(x) < count:
        raise ValueError(f"codes_of: {count} codes cannot be drawn from {len(x)} rows")
    rows = x.detach().reshape(len(x), groups, -1)
    picks = [torch.randperm(len(x), generator=generator, device=x.device)[:count] for _ in range(groups)]
    return torch.stack([rows[pick, group] for group, pick in enumerate(picks)])


# ---- the module
class Quantized(NamedTuple):
    """What a codebook made of its input.

    Attributes:
        values: the nearest codes in the input's shape, with the gradient passed on to the input.
        indices: which they are, (..., G).
        source: the input as vectors, (..., G, D).
        codes: the nearest codes as vectors, with a gradient by the codebook.
    """

    values: Tensor
    indices: Tensor
    source: Tensor
    codes: Tensor

    def quantization_error(self) -> Tensor:
        """Mean squared distance of each sample from its codes, (B,), that moves the codes."""
        return _per_sample(self.source.detach() - self.codes)

    def commitment_error(self) -> Tensor:
        """The same number, that moves the input."""
        return _per_sample(self.source - self.codes.detach())


def _per_sample(difference: Tensor) -> Tensor:
    wide = difference.to(torch.promote_types(difference.dtype, torch.float32))
    return wide.square().flatten(1).mean(1)


class Codebook(nn.Module):
    """One or several codebooks: VQ (one), product quantisation (several), a scalar quantiser (codes of one number).

    The input has G * D numbers along ``dim``, cut into G vectors, each of which is replaced by the nearest code of its
    own codebook. The module's output is a ``Quantized``. Codes learn by gradient, from its ``quantization_error``
    (van den Oord et al. 2017, arXiv 1711.00937, Eq. 3), or follow the mean of what they stand for (appendix A.1
    there): count <- decay * count + (1 - decay) * vectors now, likewise their sum, code = sum / count. A code that
    nothing chooses stays where it is. Under data parallelism the vectors of all ranks count. Means stall in half
    precision: leave this module in float32, its input may be narrow.

    Args:
        initial: the first codes, (G, K, D).
        decay: memory of codes that follow means, in [0, 1); None: codes learn by gradient.
        dim: of the input that holds the vectors; 1 for images (B, C, H, W).

    Raises:
        ValueError: for another shape, or a decay out of its range.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, initial: Tensor, *, decay: float | None = None, dim: int = -1) -> None:
        super().__init__()
        if initial.ndim != 3 or not initial.numel():
            raise ValueError(f"Codebook: codes have the shape (codebooks, codes, size), got {tuple(initial.shape)}")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"Codebook: decay must be in [0, 1), got {decay:g}")
        self.decay, self.dim = decay, dim
        self.track_running_stats = decay is not None  # extra passes of an update leave the means alone
        initial = initial.detach().clone()
        if decay is None:
            self.codes = nn.Parameter(initial)
        else:
            self.register_buffer("codes", initial)
            self.register_buffer("counts", torch.ones(initial.shape[:2], device=initial.device))
            self.register_buffer("sums", initial.clone())

    def forward(self, x: Tensor) -> Quantized:
        """(B, ..., G * D, ...) to what became of it."""
        groups, _, size = self.codes.shape
        last = x.movedim(self.dim, -1)
        if last.shape[-1] != groups * size:
            raise ValueError(
                f"Codebook: the input has {last.shape[-1]} numbers along dimension {self.dim}, "
                f"and {groups} codebooks of vectors of {size} need {groups * size}"
            )
        source = last.reshape(*last.shape[:-1], groups, size)
        index = nearest_codes(source, self.codes)
        codes = look_up(self.codes, index)
        if self.decay is not None and self.training and self.track_running_stats:
            self._follow(source, index)
        values = straight_through(codes.to(source.dtype), source).flatten(-2).movedim(-1, self.dim)
        return Quantized(values, index, source, codes)

    @torch.no_grad()
    def _follow(self, source: Tensor, index: Tensor) -> None:
        assert self.decay is not None
        count = self.codes.shape[1]
        vectors = source.to(self.sums.dtype)
        now = _sums(torch.cat([vectors, torch.ones_like(vectors[..., :1])], -1), index, count)
        now = gather(now[None]).sum(0)
        sums, counts = now[..., :-1], now[..., -1].to(self.counts.dtype)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        counted = self.counts.unsqueeze(-1)
        self.codes.copy_(torch.where(counted > FORGOTTEN, self.sums / counted, self.codes))

    def extra_repr(self) -> str:
        groups, count, size = self.codes.shape
        learned = "by gradient" if self.decay is None else f"decay={self.decay:g}"
        return f"{groups} of {count} codes of size {size}, {learned}"
