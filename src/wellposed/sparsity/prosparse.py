"""Activations that are mostly exactly zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, SineStages, Step, Task, knob
from ..core.modes import evaluating
from ..core.schedules import Scalar

__all__ = [
    "FATReLU",
    "ProSparse",
    "activation_norm",
    "activation_sparsity",
    "fat_relu",
    "relufy",
    "sine_stages",
]

OTHERS = (
    nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardswish, nn.Softplus,
    nn.Tanh,
)  # fmt: skip


def activation_norm(h: Tensor) -> Tensor:
    """L1 norm of the activations of a token, averaged over the tokens of each sample.

    Args:
        h: (B, units), tokens (B, T, units), or channels before space (B, units, H, W, ...).

    Returns:
        shape (B,), in at least float32: summed over units, averaged over tokens or places.
    """
    tokens = 1 if h.ndim < 3 else h.shape[1] if h.ndim == 3 else h[0, 0].numel()
    return h.to(torch.promote_types(h.dtype, torch.float32)).abs().flatten(1).sum(1) / tokens


def fat_relu(x: Tensor, tau: float) -> Tensor:
    """x where x >= tau, else 0: a ReLU that also drops small positive values, and shifts nothing."""
    return torch.where(x >= tau, x, 0.0)


class FATReLU(nn.Module):
    """``fat_relu`` as a module.

    Args:
        tau: threshold, at least 0.

    Raises:
        ValueError: if ``tau`` is negative.
    """

    def __init__(self, tau: float = 0.01) -> None:
        super().__init__()
        if tau < 0:
            raise ValueError(f"FATReLU: tau must be at least 0, got {tau:g}")
        self.tau = tau

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return fat_relu(x, self.tau)

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"tau={self.tau:g}"


RELUS = (nn.ReLU, nn.ReLU6, FATReLU)


def relufy(model: nn.Module, tau: float = 0.0) -> nn.Module:
    """Replace smooth activation modules by ReLUs, in place, where exact zeros are wanted; then train on.

    Args:
        model: any module; functional calls such as ``F.silu`` are not seen.
        tau: threshold; above 0 every activation, ReLUs included, becomes a ``FATReLU``.

    Returns:
        the model (a new module if it is itself an activation).

    Raises:
        ValueError: if there is no activation module to replace, or ``tau`` is negative.
    """
    wanted = (*OTHERS, *RELUS) if tau else OTHERS

    def new() -> nn.Module:
        return FATReLU(tau) if tau else nn.ReLU()

    if isinstance(model, wanted):
        return new()
    places = [(m, k) for m in model.modules() for k, child in m._modules.items() if isinstance(child, wanted)]
    if not places:
        raise ValueError("relufy found no activation module to replace; functional calls must be edited by hand")
    for parent, name in places:
        setattr(parent, name, new())
        if isinstance(parent, nn.TransformerEncoderLayer):  # its fused evaluation goes by this flag, 1 for ReLU
            parent.activation_relu_or_gelu = 0 if tau else 1
    return model


def activation_sparsity(
    model: nn.Module, batches: Iterable[Tensor | Mapping[str, Any]], layers: Sequence[str] = ()
) -> dict[str, float]:
    """Share of exact zeros in the outputs of layers, in eval mode.

    Args:
        model: called as ``model(x)``; its mode is restored.
        batches: inputs x, or batches that hold them under "x".
        layers: names of submodules; empty: all ReLU modules.

    Returns:
        by layer, in [0, 1]; layers that were never reached are absent.

    Raises:
        RecipeError: if no layers are named and the model has no ReLU modules.
    """
    names = tuple(layers) or relu_names("activation_sparsity", model)
    zeros: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}

    def count(name: str, output: Tensor) -> None:
        found = (output == 0).sum()
        zeros[name] = zeros[name] + found if name in zeros else found
        sizes[name] = sizes.get(name, 0) + output.numel()

    hooks = [
        model.get_submodule(n).register_forward_hook(lambda _module, _args, output, n=n: count(n, output))
        for n in names
    ]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                model(batch["x"] if isinstance(batch, Mapping) else batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {n: zeros[n].item() / sizes[n] for n in zeros}


def relu_names(who: str, model: nn.Module) -> tuple[str, ...]:
    """Names of all ReLU modules.

    Raises:
        RecipeError: if there are none.
    """
    names = tuple(n for n, m in model.named_modules() if isinstance(m, RELUS))
    if not names:
        raise RecipeError(f"{who} looks at ReLU modules and the model has none; name layers, or use relufy(model)")
    return names


def sine_stages(top: float) -> SineStages:
    """The schedule that worked here: top / 20 until 10 % of training, half-sine ramps to top / 4 at 50 % and to top."""
    return SineStages(values=(top / 20, top / 4, top), milestones=(0.1, 0.5, 1.0))


class ProSparse(Method, paper="prosparse"):
    r"""ProSparse: drive activations to exact zeros by an L1 penalty that rises in half-sine stages.

    Computes:
        strength(t) * mean over layers and tokens of ||h||_1, summed over units. The strength stays at its first value
        during warm-up, then rises stage by stage along half a sine, with zero slope at every milestone.

    Formula:
        \frac{\lambda(t)}{L} \sum_{l=1}^{L} \frac{1}{n_l} \sum_{k=1}^{n_l} \lVert h_{l,k} \rVert_1
        \lambda(t) = \lambda_{i-1} + \frac{\lambda_i - \lambda_{i-1}}{2} (1 - \cos \pi u)
        u = \frac{t - t_{i-1}}{t_i - t_{i-1}} \in [0, 1)

    Helps:
        Nets that are to skip work on zeros: on digits sparsity rose from 23 to 85 % at no loss of accuracy. Give a
        smooth net exact zeros first (``relufy``), and drop small positive values afterwards (``FATReLU``).

    Avoid:
        As a means to accuracy. The staged rise was no better than a constant strength of the same final value on a
        small net; it is made for pretrained language models. Activations without exact zeros (GELU, SiLU).

    Defaults:
        ``sine_stages(0.03)``: up to 0.03. Strengths scale with the reduction used here (summed over units), so the
        paper's numbers do not carry over; wider layers need less.

    Cost:
        One pass; the tapped activations are kept anyway.

    Reference:
        Song et al. 2024, ProSparse: Introducing and Enhancing Intrinsic Activation Sparsity within Large Language
        Models, arXiv 2402.13516. Averaging over tokens and layers, not units, is our reading.

    Args:
        layers: names of the submodules whose outputs are penalised; in gated blocks the module that returns the product
            of gate and value. Empty: all ReLU modules (of one called several times in a pass, the last call).
        strength: factor of the penalty; a schedule needs the length of training.
    """

    layers: Sequence[str] = ()
    strength: Scalar = knob(sine_stages(0.03), low=0.0, grid=(sine_stages(0.01), sine_stages(0.03), sine_stages(0.1)))

    def setup(self, model: nn.Module, task: Task) -> None:
        self.taps = tuple(self.layers) or relu_names("ProSparse", model)

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        norms = [activation_norm(step.taps[name]) for name in self.taps]
        return torch.stack(norms).mean(0)
