"""Activations without outlier channels, and quantised inputs with learned clipping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import Scalar
from ..parts.quantizers import quantize
from ..weights._layers import CONV, LINEAR, weight_layers

__all__ = ["ActivationKurtosis", "LearnedClip", "kurtosis", "outlier_channel_ratio", "quantize_inputs"]


def kurtosis(x: Tensor, dim: int = -1, eps: float = 1e-12) -> Tensor:
    """Fourth central moment over the squared variance, along one dimension, which vanishes; in at least float32.

    1 for two equal clusters, 1.8 for uniform entries, 3 (d - 1) / (d + 1) on average for d Gaussian ones,
    d - 2 + 1 / (d - 1) for a single spike among d; 0 where all entries are the same.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    square = (x - x.mean(dim, keepdim=True)).square()
    return square.square().mean(dim) / (square.mean(dim).square() + eps)


def channel_dim(x: Tensor) -> int:
    """Where the channels are: last in (B, C) and (B, T, C), second in images (B, C, H, W, ...)."""
    return 1 if x.ndim > 3 else -1


@torch.no_grad()
def outlier_channel_ratio(x: Tensor) -> Tensor:
    """Largest over median channel, measured by mean magnitude over all tokens: a scalar, 1 where all are alike.

    Args:
        x: (B, C), (B, T, C) or (B, C, H, W, ...).
    """
    size = x.movedim(channel_dim(x), -1).flatten(0, -2).abs().mean(0)
    return size.max() / size.median()


class LearnedClip(nn.Module):
    """Rounds to 2^bits values between two learned ends, with straight-through gradients (PACT, LSQ).

    Args:
        bits: at least 1.
        low: magnitude of the lower end at the start.
        high: upper end at the start.

    Raises:
        ValueError: for fewer than one bit, or ends that are not above 0.
    """

    def __init__(self, bits: int = 4, low: float = 3.0, high: float = 4.0) -> None:
        super().__init__()
        if bits < 1 or min(low, high) <= 0:
            raise ValueError(f"LearnedClip needs at least 1 bit and ends above 0, got {bits}, {low:g} and {high:g}")
        self.bits = bits
        self.low = nn.Parameter(torch.tensor(float(low)))
        self.high = nn.Parameter(torch.tensor(float(high)))

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...), in the dtype of the input."""
        return quantize(x, -self.low.to(x.dtype), self.high.to(x.dtype), self.bits)

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"bits={self.bits}"


def quantize_inputs(
    model: nn.Module, bits: int = 4, layers: Sequence[str] = (), low: float = 3.0, high: float = 4.0
) -> nn.Module:
    """Let layers see quantised inputs, in place, for training and afterwards; call before the optimizer is made.

    Args:
        model: each layer gets a ``LearnedClip`` as its submodule ``input_quantizer``.
        bits, low, high: of ``LearnedClip``.
        layers: names of linear layers and convolutions; empty: all. Attention of ``nn.MultiheadAttention`` does not
            call its layers as modules and is left as it is.

    Returns:
        the model.

    Raises:
        RecipeError: if there is no such layer, or it has a quantizer already.
    """
    modules = dict(model.named_modules())
    names = tuple(layers) or tuple(n for n, m in modules.items() if isinstance(m, LINEAR + CONV))
    for name in names or ("a linear layer or convolution",):
        if not isinstance(modules.get(name), LINEAR + CONV):
            raise RecipeError(f"quantize_inputs needs linear layers or convolutions; the model lacks '{name}'")
    for name in names:
        layer = modules[name]
        if hasattr(layer, "input_quantizer"):
            raise RecipeError(f"'{name}' has quantised inputs already")
        weight = layer.weight
        assert isinstance(weight, Tensor)
        layer.input_quantizer = LearnedClip(bits, low, high).to(weight.device)
        layer.register_forward_pre_hook(_quantized)
    return model


def _quantized(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    quantizer = layer.input_quantizer
    assert isinstance(quantizer, LearnedClip)
    return (quantizer(args[0]), *args[1:])


class ActivationKurtosis(Method, paper="activation-kurtosis-reg"):
    r"""Kurtosis penalty on layer outputs: no channel sticks out, so that activations survive a few bits.

    Computes:
        strength * sum over layers of the mean over tokens of the kurtosis of a layer's output across its channels.

    Formula:
        \operatorname{Kurt}(o) = d \sum_c (o_c - \mu)^4 \Big/ \left( \sum_c (o_c - \mu)^2 \right)^2
        \ell = \lambda \sum_l \frac{1}{N} \sum_n \operatorname{Kurt}(o_l^{(n)})

    Helps:
        4-bit activations of nets with outlier channels: with a planted channel on digits the kurtosis of hidden outputs
        fell from 30 to 1.7 and accuracy with 4-bit activations rose by 5 points, at 0.8 less in full precision.

    Avoid:
        Large strengths: 0.1 cost 7 points of accuracy in full precision. As the only measure: kurtosis is free of
        scale, so it does not bound magnitudes. That input quantisation alone moves the outliers into the weights was
        not tested.

    Defaults:
        strength 1e-5, the authors'; a small net wanted 1e-2. All linear layers and convolutions but the last.

    Cost:
        One pass; two readings of the tapped outputs.

    Reference:
        Nrusimha, Mishra, Wang, Alistarh, Panda, Kim 2024, Mitigating the Impact of Outlier Channels for Language Model
        Quantization with Activation Regularization, arXiv 2404.03605, section 4. Summing over layers and averaging over
        tokens is our reading. Their 4-bit inputs with learned clipping are ``quantize_inputs``. One-hot outputs have
        kurtosis d - 2 + 1 / (d - 1), not d.

    Args:
        layers: names of the submodules whose outputs are penalised, before the activation function; (B, C), tokens
            (B, T, C) or images (B, C, H, W). Empty: all linear layers and convolutions but the last.
        strength: factor of the penalty.
    """

    layers: Sequence[str] = ()
    strength: Scalar = knob(1e-5, low=0.0, grid=(1e-5, 1e-4, 1e-3), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.taps = tuple(self.layers) or (weight_layers(self, model)[:-1] or weight_layers(self, model))

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        # attention uses the weight of its output layer without calling the layer: there is nothing to look at
        found = [step.taps[name] for name in self.taps if name in step.taps]
        if not found:
            raise RecipeError(f"ActivationKurtosis saw no output of {', '.join(self.taps)}; name other layers")
        values = [kurtosis(o, channel_dim(o)) for o in found]
        return torch.stack([v if v.ndim == 1 else v.flatten(1).mean(1) for v in values]).sum(0)
