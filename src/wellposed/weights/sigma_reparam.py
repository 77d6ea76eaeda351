"""Weights as a learned number times a matrix of spectral norm 1, against the collapse of attention's entropy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core import Method, RecipeError, Step, Task, knob
from ._matrices import Place, leading_vectors, places, singular_values, start, unfold

__all__ = [
    "SigmaReparam", "SigmaScaled", "attention_entropies", "attention_entropy", "attention_entropy_bound",
]  # fmt: skip

Init = Literal["one", "sigma"]


def attention_entropy(attention: Tensor) -> Tensor:
    """Mean entropy of attention's rows, for each head.

    Args:
        attention: probabilities, (..., heads, queries, keys).

    Returns:
        shape (heads,), in nats, in [0, log keys].
    """
    return torch.special.entr(attention).sum(-1).flatten(0, -3).mean((0, -1))


def attention_entropy_bound(norm: float, tokens: int) -> float:
    """The least entropy of a softmax over ``tokens`` logits whose vector is no longer than ``norm``; it is attained.

    Args:
        norm: Euclidean length of a row of logits; at most the spectral norm of W_Q W_K^T times lengths of the tokens,
            over sqrt(d).
        tokens: T, at least 2.

    Returns:
        log(1 + (T - 1) b) + norm sqrt(T (T - 1)) b / (1 + (T - 1) b) with b = exp(-norm sqrt(T / (T - 1))), in nats;
        Zhai et al. 2023 (arXiv 2303.06296), Theorem 3.1.
    """
    b = math.exp(-norm * math.sqrt(tokens / (tokens - 1)))
    whole = 1 + (tokens - 1) * b
    return math.log(whole) + norm * math.sqrt(tokens * (tokens - 1)) * b / whole


@contextmanager
def attention_entropies(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, every pass records each ``nn.MultiheadAttention``'s entropy, by name, shape (heads,), the last pass's.

    Attention is computed once more for it, without gradients and dropout.
    """
    found: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        @torch.no_grad()
        def hook(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            dropout, module.dropout = module.dropout, 0.0
            try:
                wanted = {**kwargs, "need_weights": True, "average_attn_weights": False}
                weights = module.forward(*args[:3], **wanted)[1]
                assert weights is not None
            finally:
                module.dropout = dropout
            found[name] = attention_entropy(weights)

        return hook

    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    handles = [m.register_forward_hook(record(n), with_kwargs=True) for n, m in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class SigmaScaled(nn.Module):
    """The parametrisation gamma W / sigma(W) of one weight.

    sigma = u^T W v, with u and v held constant; gradients reach W through it. ``advance`` brings u and v up to date.

    Args:
        weight: the initial weight.
        place: how it is read as matrices; each has a gamma of its own.
        init: "one", or "sigma" to start from the weight as it is.
        steps: of the power iteration that u and v start from.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, place: Place, init: Init = "one", steps: int = 15) -> None:
        super().__init__()
        self.place = place
        matrices = unfold(weight.detach(), place)
        u, v = leading_vectors(matrices, start(matrices, steps), 1)
        self.register_buffer("u", u)
        self.register_buffer("v", v)
        sigma = singular_values(matrices, u, v)
        self.gamma = nn.Parameter(torch.ones_like(sigma) if init == "one" else sigma)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight the layer computes with."""
        with torch.autocast(weight.device.type, enabled=False):
            factor = self.gamma / singular_values(unfold(weight, self.place), self.u, self.v)
        blocks = weight.reshape(len(factor), -1, *weight.shape[1:])
        return (blocks * factor.to(weight.dtype).view(-1, *(1,) * weight.ndim)).flatten(0, 1)

    @torch.no_grad()
    def advance(self, weight: Tensor, steps: int = 1) -> None:
        """Continue the power iteration on the weight as it is now."""
        u, v = leading_vectors(unfold(weight, self.place), self.u, steps)
        self.u.copy_(u)
        self.v.copy_(v)


class SigmaReparam(Method, paper="sigma-reparam"):
    r"""Sigma reparametrisation: every weight matrix is a learned factor times itself over its spectral norm.

    Computes:
        gamma W / sigma(W) in place of W, for every linear layer, convolution and attention projection, with one trained
        gamma a matrix. sigma = u^T W v, where u and v follow W by one power iteration an update, so that all passes of
        an update see the same function. Fused queries, keys and values are three matrices. Embeddings, biases, norms
        and weights that layers share are left alone.

    Formula:
        \hat{W} = \frac{\gamma}{\sigma(W)} W, \qquad \sigma(W) = u^\top W v
        \mathrm{Ent} \ge \log\left(1 + (T - 1) \beta\right) + \frac{\sigma \sqrt{T (T - 1)}\, \beta}{1 + (T - 1) \beta}, \qquad \beta = e^{-\sigma \sqrt{T / (T - 1)}}

    Helps:
        Transformers that would not train otherwise: normalisation after the block, large rate, no warm-up. Logits can
        then grow by gamma only, so attention does not collapse onto single tokens.

    Avoid:
        Expecting accuracy where plain training is stable: at a tenth of the rate there was no gain. Make the optimizer
        after ``attach``, or gamma is not trained, and keep weight decay off gamma (it is a vector:
        ``no_decay_groups`` does).

    Defaults:
        gamma starts at 1, the paper's text; init="sigma" starts from the function the model had, as the released code
        does, and is what a pretrained model needs.

    Cost:
        One pass; per matrix one product with a vector a pass and two an update, and a copy of the weight in the graph.

    Reference:
        Zhai, Likhomanenko, Littwin, Busbridge, Ramapuram, Zhang, Gu, Susskind 2023, Stabilizing Transformer Training by
        Preventing Attention Entropy Collapse, arXiv 2303.06296. There the power iteration runs in each forward pass.

    Args:
        init: first value of gamma, "one" or "sigma".
        power_steps: iterations an update.
    """  # noqa: E501

    null = None
    stops = True  # u and v are held constant

    init: Init = "one"
    power_steps: int = knob(1, low=1, grid=(1, 2, 4))

    def check(self) -> None:
        if self.init not in get_args(Init):
            raise ValueError(f"SigmaReparam: init must be 'one' or 'sigma', got {self.init!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        uses = Counter(id(p) for m in model.modules() for p in m._parameters.values())
        self.orders: dict[str, list[str]] = {}
        chosen = []
        for place in places(self, model):
            layer = model.get_submodule(place.layer)
            if parametrize.is_parametrized(layer, place.name):
                raise RecipeError(
                    f"SigmaReparam and something before it both reparametrise '{place.name}' of '{place.layer}'; "
                    "keep one of them"
                )
            weight = place.read(model)
            if uses[id(weight)] > 1:
                continue
            scaled = SigmaScaled(weight, place, self.init)
            if not singular_values(unfold(weight.detach(), place), scaled.u, scaled.v).all():
                raise RecipeError(
                    f"SigmaReparam divides by the spectral norm of '{place.layer}.{place.name}', which is 0: "
                    "give that layer an initial weight, or freeze it"
                )
            chosen.append((place, layer, scaled))
        if not chosen:
            raise RecipeError(
                "SigmaReparam leaves weights that several layers share alone, and the model has no others"
            )
        for place, layer, scaled in chosen:
            self.orders.setdefault(place.layer, list(layer._parameters))
            parametrize.register_parametrization(layer, place.name, scaled)
        self.chosen = [place for place, _, _ in chosen]

    def update(self, step: Step) -> None:
        for place in self.chosen:
            stack: Any = step.model.get_submodule(place.layer).parametrizations
            stack[place.name][0].advance(stack[place.name].original, self.power_steps)

    def teardown(self, model: nn.Module) -> None:
        for path, order in getattr(self, "orders", {}).items():
            layer = model.get_submodule(path)
            for name in order:
                if parametrize.is_parametrized(layer, name):
                    parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
            for name in order:  # parameters come in their old order again
                layer._parameters[name] = layer._parameters.pop(name)
        self.orders = {}
