"""Training with quantised weights as a regularizer, and how strong one it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.task import Batch
from ..parts.curvature import gradient, hessian, hutchinson_trace
from ..parts.masks import bake, reparametrise, unshared
from ..parts.quantizers import dequantized, grid_step, minmax_range
from ..weights._layers import weight_layers

__all__ = ["QReg", "quantization_penalty", "rounding_noise"]

Mode = Literal["round", "noise"]


def rounding_noise(weight: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """Uniform noise of the size of rounding errors: U(-D/2, D/2), D = (max - min) / (2^bits - 1) of the tensor."""
    draw = torch.rand(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)
    return (draw - 0.5) * grid_step(*minmax_range(weight), bits)


def quantization_penalty(
    loss: Callable[[], Tensor],
    weights: dict[str, Tensor],
    bits: int,
    samples: int = 10,
    generator: torch.Generator | None = None,
) -> float:
    """By how much quantisation noise raises a loss on average, to second order: sum_l D_l^2 / 24 tr H_l.

    Args:
        loss: computes the scalar from ``weights``, without randomness of its own.
        weights: tensors that require gradients and are quantised, by name, each over its own range.
        bits: per weight.
        samples: random vectors of the trace estimate.
        generator: of their signs.

    Returns:
        the expected rise; each bit less makes it about four times as large. tr H_l is the trace of the loss's Hessian
        in one tensor, estimated by Hutchinson's method.
    """
    total = 0.0
    for name, weight in weights.items():
        only = {name: weight}
        traces = hutchinson_trace(hessian(gradient(loss, only), only), only, samples, generator)
        step = grid_step(*minmax_range(weight), bits)
        total += float(step.square() / 24 * traces.mean())
    return total


class Quantized(nn.Module):
    """The parametrisation: rounds, or adds the noise it was handed last (in training only)."""

    def __init__(self, bits: int, mode: Mode, symmetric: bool) -> None:
        super().__init__()
        self.bits, self.mode, self.symmetric = bits, mode, symmetric
        self.noise: Tensor | None = None

    def forward(self, w: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        if self.mode == "round":
            return dequantized(w, self.bits, self.symmetric)
        return w + self.noise if self.training and self.noise is not None else w


class QReg(Method, paper="qreg"):
    r"""QReg: train with weights rounded to few bits, for the noise that this adds.

    Computes:
        Layers compute with weights rounded to 2^bits evenly spaced values over the range of their tensor; gradients
        pass straight through to the weights in full precision. With mode="noise" uniform noise of the same size takes
        the place of the rounding, drawn anew for every update. To second order that adds D^2 / 24 tr H to the loss.

    Formula:
        w_q = w + n, \quad n \sim U(-D/2, D/2), \quad D = \frac{\max w - \min w}{2^b - 1}
        E\, L(w + n) \approx L(w) + \frac{D^2}{24} \operatorname{tr} H

    Helps:
        Wrong labels, with few bits: at 3 bits and 40 % wrong labels the gap between test and training loss shrank, and
        25 points fewer of the wrong labels were fitted. The model can be shipped with that many bits.

    Avoid:
        8 bits, the paper's reliable choice: nothing changed. At 4 bits and more little did; accuracy did not rise
        reliably at any. A single rounding is no average over noise: it may raise or lower the loss.

    Defaults:
        bits 8: the paper's. rounding over each tensor's smallest to largest weight.

    Cost:
        One pass; two readings of each weight per forward pass.

    Reference:
        AskariHemmat, Hemmat, Hoffman, Lazarevich, Saboori, Mastropietro, Sah, Savaria, David 2022, QReg: On
        Regularization Effects of Quantization, arXiv 2206.12372, section 3. Weights that several layers share stay in
        full precision, so do biases and norms.

    Args:
        bits: per weight.
        mode: "round" (detaching leaves the rounded weights), or "noise" (evaluation without noise).
        symmetric: a grid symmetric about 0 in place of the tensor's own range; "round" only.
        layers: names of linear layers and convolutions; empty: all.
    """

    null = None
    stops = True

    bits: int = knob(8, low=1, high=16, grid=(3, 4, 8))
    mode: Mode = "round"
    symmetric: bool = False
    layers: Sequence[str] = ()

    def check(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"QReg: mode must be 'round' or 'noise', got {self.mode!r}")
        if self.mode == "noise" and self.symmetric:
            raise ValueError("QReg: symmetric is about rounding; mode='noise' has no grid")

    def setup(self, model: nn.Module, task: Task) -> None:
        able = unshared(model, weight_layers(self, model))
        if wrong := [name for name in self.layers if name not in able]:
            raise RecipeError(f"QReg cannot quantise '{wrong[0]}': it has no trainable, unshared weight of its own")
        if not able:
            raise RecipeError("QReg found no trainable, unshared weight to quantise")
        noisy: dict[str, Quantized] = {}

        def make(name: str, weight: Tensor) -> Quantized:
            noisy[name] = Quantized(self.bits, self.mode, self.symmetric)
            return noisy[name]

        self.__dict__["noisy"] = noisy  # not registered: they are the model's modules
        reparametrise(model, tuple(self.layers) or able, make)

    def batch(self, batch: Batch, step: Step) -> Batch:
        if self.mode == "noise" and step.first and step.micro == 0:  # one draw an update, for all its batches
            for name, part in self.__dict__["noisy"].items():
                layer = step.model.get_submodule(name)
                weight = layer.parametrizations.weight.original  # type: ignore[union-attr]
                assert isinstance(weight, Tensor)
                part.noise = rounding_noise(
                    weight.detach(), self.bits, step.rng(self, name, device=weight.device, shared=True)
                )
        return batch

    def teardown(self, model: nn.Module) -> None:
        for part in self.__dict__.pop("noisy", {}).values():
            part.noise = None  # what is left behind are the weights themselves
        bake(model, Quantized)
