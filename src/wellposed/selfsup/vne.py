"""Von Neumann entropy of representations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ..parts.spectra import von_neumann_entropy, wide

__all__ = ["VNE", "representation_entropy"]


def representation_entropy(h: Tensor) -> Tensor:
    """Von Neumann entropy (nats) of the autocorrelation C = 1/N sum_i h_i h_i^T of rows of length 1.

    Args:
        h: (N, D), any lengths; rows are normalised here, so that tr C = 1, and not centred.

    Returns:
        -tr(C log C), a scalar in at least float32, from 0 (all rows parallel) to log min(N, D); its exponential is an
        effective rank. Kim et al. 2023 (arXiv 2304.01434), Eq. 2.
    """
    return von_neumann_entropy(F.normalize(wide(h), dim=1))


class VNE(Method, paper="vne"):
    r"""Von Neumann entropy: spread a layer's representations over more directions, or gather them in fewer.

    Computes:
        -strength * S(C), where C is the autocorrelation of one layer's outputs, flattened and brought to length 1, over
        the batch (of all ranks), and S its von Neumann entropy. A negative strength lowers the entropy.

    Formula:
        S(C) = -\sum_j \lambda_j \log \lambda_j, \quad C = \frac{1}{N} \sum_i h_i h_i^\top, \quad \lVert h_i \rVert = 1

    Helps:
        Representations that use few of their dimensions: beside a contrastive loss on digits the effective rank of the
        features grew by a third. The paper reports gains in domain generalisation, few-shot and self-supervised
        learning, with positive strength, and in fine-tuning with negative.

    Avoid:
        Expecting accuracy from rank: a linear probe of the same digits lost about 3 points, at strength 0.5 about 8.
        From representations of exactly low rank it cannot escape: the missing directions have no gradient.

    Defaults:
        strength 0.1; the paper's are between 0.001 and 1, by task.

    Cost:
        One pass; eigenvalues of a matrix of min(N, D).

    Reference:
        Kim, Kang, Hwang, Shin, Rhee 2023, VNE: An Effective Method for Improving Deep Representation by Manipulating
        Eigenvalue Distribution, arXiv 2304.01434. Eigenvalues that are 0 have a finite gradient here (the logarithm
        stops at 1e-12), where the authors' code gives NaN.

    Args:
        layer: name of the submodule whose output is the representation.
        strength: of the entropy, above 0 to raise it, below to lower it.
    """

    scope = "batch"
    exact = False
    example = {"layer": "0"}

    layer: str = knob()
    strength: Scalar = knob(0.1, grid=(0.01, 0.1, 1.0), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.taps = (self.layer,)

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        found = step.taps[self.layer]
        h = found[0] if isinstance(found, tuple) else found
        return -representation_entropy(step.gather(h.flatten(1)))
