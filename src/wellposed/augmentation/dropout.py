"""Dropout, without editing the model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..core import Method, Task, knob
from ._dropping import Dropping

__all__ = ["Dropout"]


class Dropout(Method):
    r"""Dropout after the activations of any model, put in from outside.

    Computes:
        Each output of an activation module is zeroed with probability p and scaled by 1 / (1 - p) otherwise, in
        training mode only. Extra passes of a step (SAM's second gradient, VAT's) repeat the masks.

    Formula:
        h \leftarrow \frac{m \odot h}{1 - p}, \qquad m_i \sim \mathrm{Bernoulli}(1 - p)

    Helps:
        Overfitting and wrong labels, at almost no cost; also robustness to small adversarial perturbations.

    Avoid:
        Small models that underfit, and nets with BatchNorm right behind it, whose statistics then differ between
        training and evaluation. It may merely match early stopping: it did at 40 % wrong labels.

    Defaults:
        p 0.5, the original choice for hidden units; 0.1 to 0.3 in transformers and convolutional nets.

    Cost:
        One pass.

    Reference:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov 2014, Dropout: A Simple Way to Prevent Neural Networks
        from Overfitting, JMLR 15. In the scaled form that needs nothing at evaluation.

    Args:
        p: probability of zeroing, in [0, 1).
        layers: names of the submodules whose outputs are dropped; empty: all activation modules (functional calls such
            as ``F.relu`` are none: name the layers then).
    """

    null = {"p": 0.0}
    exact = False

    p: float = knob(0.5, low=0.0, high=0.99, grid=(0.1, 0.3, 0.5))
    layers: Sequence[str] = ()

    def setup(self, model: nn.Module, task: Task) -> None:
        self.dropping = Dropping(self.p)
        if self.p:
            self.dropping.insert(self, model, self.layers)

    def teardown(self, model: nn.Module) -> None:
        self.dropping.remove()
