"""Keeping the error signal's norm while it travels back through a recurrent net."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import Scalar

__all__ = [
    "VanishingGradientPenalty",
    "gradient_profile",
    "hidden_gradients",
    "spectral_radius",
    "vanishing_gradient_penalty",
]


def hidden_gradients(direct: Tensor, slope: Tensor, weight: Tensor) -> Tensor:
    """dE/dh_k of every step, from the parts of it that do not pass through h_{k+1}.

    Args:
        direct: derivative of E by the net's output at step k with the later states held fixed, (T, B, H).
        slope: derivative of the activation at step k, (T, B, H).
        weight: recurrent weights W of h_k = act(W h_{k-1} + ...), (H, H).

    Returns:
        (T, B, H): d_T = direct_T, d_k = direct_k + W' (slope_{k+1} d_{k+1}).
    """
    total = direct.clone()
    for k in reversed(range(len(total) - 1)):
        total[k] += (total[k + 1] * slope[k + 1]) @ weight
    return total


def vanishing_gradient_penalty(gradients: Tensor, slope: Tensor, weight: Tensor, squared: bool = True) -> Tensor:
    """How far one step back in time is from keeping the error's norm: the regulariser Omega.

    Args:
        gradients: dE/dh_k, (T, B, H); a constant here.
        slope: derivative of the activation at step k, (T, B, H); a constant here.
        weight: recurrent weights, (H, H), the only thing the result is differentiated by.
        squared: compare squared norms, as the released code does; else norms, as the paper writes.

    Returns:
        (B,): mean over k of (||W' (slope_{k+1} d_{k+1})||^2 / ||d_{k+1}||^2 - 1)^2, where steps with
        ||d_{k+1}||^2 <= 1e-20 do not count; Pascanu et al. 2013 (arXiv 1211.5063), Eqs. 9 and 10.
    """
    later = gradients[1:].detach()
    size = later.square().sum(-1)
    counts = size > 1e-20
    ratio = ((later * slope[1:].detach()) @ weight).square().sum(-1) / size.where(counts, 1.0)
    if not squared:
        ratio = ratio.clamp(min=torch.finfo(ratio.dtype).tiny).sqrt()
    off = (ratio - 1).square().where(counts, 0.0)
    return off.sum(0) / counts.sum(0).clamp(min=1)


def gradient_profile(rnn: nn.RNN, output: Tensor, last: Tensor, loss: Tensor) -> Tensor:
    """||dE/dh_k|| over the batch for every time step: its slope tells vanishing (rising) from exploding (falling).

    Args:
        rnn: one layer, one direction.
        output, last: what ``rnn`` returned.
        loss: a scalar computed from them, whose graph is kept.

    Returns:
        (T,).
    """
    direct, slope, weight = _recursion(rnn, output, last, loss)
    return hidden_gradients(direct, slope, weight.detach()).flatten(1).norm(dim=1)


def spectral_radius(weight: Tensor) -> Tensor:
    """Largest absolute eigenvalue of a square matrix, a scalar: above 1, gradients of a linear net can explode."""
    return torch.linalg.eigvals(weight).abs().amax()


class VanishingGradientPenalty(Method, paper="gradient-clipping-omega"):
    r"""Vanishing-gradient penalty (Omega): error signals keep their norm from one time step to the one before.

    Computes:
        strength * mean over steps of (||dE/dh_{k+1} dh_{k+1}/dh_k||^2 / ||dE/dh_{k+1}||^2 - 1)^2 for an ``nn.RNN``,
        differentiated by the recurrent weights only, with states and error signals held constant. E is the task's
        loss. The signals come from a recursion over the states the layer returned, without a second forward pass.

    Formula:
        \lambda \, \mathrm{mean}_{k} \left( \frac{\lVert \delta_k J_k \rVert^2}{\lVert \delta_k \rVert^2} - 1 \right)^2
        J_k = \frac{\partial h_k}{\partial h_{k-1}}, \qquad \delta_k = \frac{\mathrm{d} E}{\mathrm{d} h_k}

    Helps:
        Keeping the recurrence near the edge of stability: on the temporal order task the spectral radius of the
        recurrent weights ended at 1.14 instead of 1.41, in 10 of 10 seeds.

    Avoid:
        Counting on accuracy: on top of clipping the gain on that task varies with its length and the seeds (+9 to
        +26 points in three sets of five, with sd 14 and 21 where that was recorded). Gated cells (LSTM, GRU), for
        which it is not defined. Without gradient clipping.

    Defaults:
        strength 2 and squared norms: the authors' code, which does not decay the strength.

    Cost:
        One pass, and a loop over time of one small matrix product a step; the states' gradients once more in memory.

    Reference:
        Pascanu, Mikolov, Bengio 2013, On the difficulty of training Recurrent Neural Networks, arXiv 1211.5063,
        Eqs. 9 and 10. The paper writes norms, its code compares squared norms; the code averages over steps and
        samples together, here each sample averages over its own steps.

    Args:
        layer: name of the ``nn.RNN`` in the model (tanh or relu, one layer, one direction).
        strength: factor of the penalty.
        squared: compare squared norms; False: norms.
    """

    stops = True
    example = {"model": "rnn", "layer": "rnn"}

    layer: str = knob()
    strength: Scalar = knob(2.0, low=0.0, grid=(0.5, 2.0, 4.0))
    squared: bool = True

    def setup(self, model: nn.Module, task: Task) -> None:
        self.taps = (self.layer,)
        rnn = dict(model.named_modules()).get(self.layer)  # a missing one is refused with the taps
        if rnn is not None and (not isinstance(rnn, nn.RNN) or rnn.num_layers > 1 or rnn.bidirectional):
            raise RecipeError(
                f"VanishingGradientPenalty needs an nn.RNN with one layer and one direction; '{self.layer}' is {rnn}"
            )

    def penalty(self, step: Step) -> Tensor:
        rnn = step.model.get_submodule(self.layer)
        assert isinstance(rnn, nn.RNN)
        output, last = step.taps[self.layer]
        if not isinstance(output, Tensor) or output.ndim != 3:
            raise ValueError(
                f"VanishingGradientPenalty needs '{self.layer}' to run on padded sequences of shape (B, T, F) or "
                "(T, B, F), not on packed or single ones"
            )
        direct, slope, weight = _recursion(rnn, output, last, step.task.loss(step.out, step.batch).sum())
        with torch.autocast(output.device.type, enabled=False):
            gradients = hidden_gradients(direct, slope, weight.detach())
            return vanishing_gradient_penalty(gradients, slope, weight, self.squared)


def _recursion(rnn: nn.RNN, output: Tensor, last: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Derivative of ``loss`` by each returned state, the activation's slope there, both (T, B, H), and the weights."""
    weight = rnn.weight_hh_l0
    assert isinstance(weight, Tensor)
    by_output, by_last = torch.autograd.grad(loss, [output, last], retain_graph=True, allow_unused=True)
    direct = torch.zeros_like(output) if by_output is None else by_output
    if rnn.batch_first:
        direct, output = direct.transpose(0, 1), output.transpose(0, 1)
    direct, states = direct.to(weight.dtype, copy=True), output.detach().to(weight.dtype)
    if by_last is not None:
        direct[-1] += by_last[0]
    slope = 1 - states.square() if rnn.nonlinearity == "tanh" else (states > 0).to(states.dtype)
    return direct, slope, weight
