"""Decay of the weights that the loss does not feel, and pruning by what the loss may rise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ..weights._decayed import check_decayed, decayed

__all__ = ["LOBSTER", "find_prune_threshold", "insensitivity"]


def insensitivity(grad: Tensor, scale: float = 1.0) -> Tensor:
    """max(1 - scale |dL/dw|, 0): 1 where the loss does not feel a weight, 0 where it feels it much; elementwise."""
    return (1 - scale * grad.abs()).clamp_min(0)


@torch.no_grad()
def find_prune_threshold(
    weights: Sequence[Tensor], validate: Callable[[], float], rise: float, iterations: int = 12
) -> float:
    """The largest magnitude below which all weights may go before the validation loss rises too much.

    Args:
        weights: of the model that ``validate`` scores; pruned for a while and restored bit for bit.
        validate: computes the loss of the model as it stands, above 0.
        rise: share by which the loss may rise, at least 0.
        iterations: halvings of the interval from 0 to the largest magnitude.

    Returns:
        a threshold T at which the loss is at most (1 + rise) times that of the weights as given; 0 if none was found.
        The loss is taken to rise with T: where it wavers, a larger T may exist.
    """
    weights = list(weights)
    kept = [w.clone() for w in weights]
    limit = (1 + rise) * float(validate())
    low, high = 0.0, max(float(w.abs().max()) for w in weights)
    for _ in range(iterations):
        middle = (low + high) / 2
        torch._foreach_copy_(weights, [w * (w.abs() >= middle) for w in kept])
        low, high = (middle, high) if float(validate()) <= limit else (low, middle)
    torch._foreach_copy_(weights, kept)
    return low


class LOBSTER(Method, paper="lobster"):
    r"""LOBSTER: decay the weights that the loss does not feel, then prune as many as it allows.

    Computes:
        Right before the optimizer's step w <- w - strength w Gamma, with Gamma = max(1 - scale |dL/dw|, 0): full decay
        where the gradient is 0, none where it is 1 / scale or more. When learning has stalled, ``prune(validate)``
        removes, for good, all weights below the largest threshold at which the validation loss rises by the share
        ``rise`` at most; then train on.

    Formula:
        \Gamma = \max(1 - |\partial L / \partial w|, 0)
        w \leftarrow w - \eta \, \partial L / \partial w - \lambda w \Gamma

    Helps:
        Pruning in rounds with a loss allowance in place of a chosen sparsity. On digits it pruned 1 point more than
        plain decay of the same strength (76 to 77 %), with the summed loss and strength 1e-3.

    Avoid:
        Expecting much more than from plain decay: with a mean loss gradients are about 1e-3, Gamma averages 0.998, and
        the rule is L2. Accuracy after pruning once to 2 or 5 % of the weights was that of decay at equal strength, for
        the summed loss (scale = batch size), too. Beside another decay.

    Defaults:
        strength 1e-4 and SGD with learning rate 0.1: the paper's for LeNet. rise 0.05.

    Cost:
        One pass; one reading of weights and gradients. A pruning round is 13 validation passes.

    Reference:
        Tartaglione, Bragagnolo, Fiandrotti, Grangetto 2020, LOss-Based SensiTivity rEgulaRization: towards deep sparse
        neural networks, arXiv 2011.09905, Eqs. 5 to 8. The decay is not multiplied by the learning rate. S is read off
        the gradient the optimizer gets, penalties included; the paper means that of the loss alone.

    Args:
        scale: factor of |dL/dw|; the batch size turns a mean loss into the summed one, 0 gives plain decay.
        rise: share by which the validation loss may rise in a pruning round.
        strength: decay of a weight per update, a number or a schedule.
        no_decay: patterns of parameter names to leave alone, such as ``("embed.*",)``.
    """

    scale: float = knob(1.0, low=0.0)
    rise: float = knob(0.05, low=0.0)
    strength: Scalar = knob(1e-4, low=0.0, high=1.0, grid=(1e-5, 1e-4, 1e-3), log=True)
    no_decay: Sequence[str] = ()

    def setup(self, model: nn.Module, task: Task) -> None:
        check_decayed("LOBSTER", model, self.no_decay)
        weights = decayed({n: p for n, p in model.named_parameters() if p.requires_grad}, self.no_decay)
        size, device = sum(w.numel() for w in weights), weights[0].device
        self.register_buffer("kept", torch.ones(size, dtype=torch.bool, device=device))
        self.__dict__["weights"] = weights  # not registered: they are the model's state

    def teardown(self, model: nn.Module) -> None:
        self.__dict__.pop("weights", None)
        self._buffers.pop("kept", None)

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        compute()
        if strength := step.at(self.strength):
            step.defer(self, partial(self._shrink, step, strength))

    @torch.no_grad()
    def _shrink(self, step: Step, strength: float) -> None:
        chosen: list[Tensor] = [p for p in decayed(step.params(), self.no_decay) if p.grad is not None]
        if chosen:
            grads = [p.grad for p in chosen if p.grad is not None]
            factors: list[Tensor] = [1 - strength * insensitivity(g, self.scale) for g in grads]
            torch._foreach_mul_(chosen, factors)

    @torch.no_grad()
    def update(self, step: Step) -> None:
        torch._foreach_mul_(self.__dict__["weights"], self._masks())

    @torch.no_grad()
    def prune(self, validate: Callable[[], float]) -> float:
        """Remove, for good, the weights that the validation loss can spare. Returns the share of weights gone so far.

        Args:
            validate: computes the validation loss of the model as it stands.

        Raises:
            RuntimeError: before the recipe is attached.
        """
        if "weights" not in self.__dict__:
            raise RuntimeError("LOBSTER.prune needs a model: attach the recipe first")
        weights: list[Tensor] = self.__dict__["weights"]
        threshold = find_prune_threshold(weights, validate, self.rise)
        kept = self.get_buffer("kept")
        kept &= torch.cat([(w.abs() >= threshold).flatten() for w in weights]).to(kept.device)
        torch._foreach_mul_(weights, self._masks())
        return 1 - float(kept.float().mean())

    def _masks(self) -> list[Tensor]:
        weights: list[Tensor] = self.__dict__["weights"]
        parts = torch.split(self.get_buffer("kept"), [w.numel() for w in weights])
        return [k.view_as(w) for k, w in zip(parts, weights, strict=True)]
