"""Invariant risk minimisation: one head that is best in every environment at once."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import Scalar

__all__ = ["IRM", "irm_gradient_penalty", "irm_gram_penalty"]

Measure = Literal["gram", "gradient"]


def irm_gram_penalty(
    features: Tensor, residual: Tensor, environment: Tensor, environments: int, ridge: float = 0.0
) -> Tensor:
    """How much risk a head of its own would save each environment.

    Args:
        features: what the linear head reads, (B, D), a column of ones among them if it has an intercept.
        residual: prediction minus target, (B,) or (B, K), for which the mean over K is taken.
        environment: ids 0 ... environments - 1, (B,).
        environments: their number E.
        ridge: added to the Gram matrix of the features at unit mean square, so that scales do not matter; at least 0.

    Returns:
        (E,): g^T (I_e + ridge diag I_e)^-1 g with I_e the mean of phi phi^T and g that of phi (f - y); without ridge
        R_e(w) - min_w' R_e(w') of the squared loss. Khezeli et al. 2021 (arXiv 2106.09777). 0 where an environment is
        absent.
    """
    phi, shares = _weighed(features, environment, environments)
    square = torch.einsum("eb,bd->ed", shares, phi.square())
    dead = square == 0  # a feature that is 0 all over the environment, or nobody there
    phi = phi / square.where(~dead, 1).sqrt()[:, None]  # (E, B, D), unit mean square in each environment
    gram = torch.einsum("eb,ebi,ebj->eij", shares, phi, phi)
    gram = gram + torch.diag_embed(ridge + dead.to(gram))
    slope = torch.einsum("eb,ebd,bk->edk", shares, phi, residual.reshape(len(residual), -1).to(phi))
    best = torch.linalg.solve_ex(gram, slope).result
    return (slope * best).sum(1).mean(1)


def irm_gradient_penalty(features: Tensor, residual: Tensor, environment: Tensor, environments: int) -> Tensor:
    """Squared norm of each environment's gradient by the head (IRMv1 for a linear head); arguments as above.

    Returns:
        (E,): ||2 mean of phi (f - y)||^2; Arjovsky et al. 2019 (arXiv 1907.02893). It lies between 4 times the smallest
        and 4 times the largest eigenvalue of I_e times the Gram penalty.
    """
    phi, shares = _weighed(features, environment, environments)
    slope = torch.einsum("eb,bd,bk->edk", shares, phi, residual.reshape(len(residual), -1).to(phi))
    return 4 * slope.square().sum(1).mean(1)


def _weighed(features: Tensor, environment: Tensor, environments: int) -> tuple[Tensor, Tensor]:
    """Features in at least float32, and 1/n_e for the members of environment e, (E, B)."""
    phi = features.to(torch.promote_types(features.dtype, torch.float32))
    members = F.one_hot(environment.long(), environments).T.to(phi)
    return phi, members / members.sum(1, keepdim=True).clamp_min(1)


class IRM(Method, paper="irm-v2-gram-penalty"):
    r"""Invariant risk minimisation with a Gram penalty: a head that no environment could improve on.

    Computes:
        strength times the mean over environments of what a linear head of its own would save each in squared loss,
        given the features. measure="gradient" is IRMv1, the squared gradient by the head, which small features hide.

    Formula:
        \rho_e = \tfrac{1}{4} \lVert I_e^{-1/2} \nabla_w R_e(w) \rVert^2 = R_e(w) - \min_{w'} R_e(w')
        I_e = \mathbb{E}_e[\phi \phi^\top]
        \lambda_{\min}(I_e) \, \rho_e \le \tfrac{1}{4} \lVert \nabla_w R_e \rVert^2 \le \lambda_{\max}(I_e) \, \rho_e

    Helps:
        Shifts in which a feature caused by the label changes its noise between training environments: the head is
        pushed to what predicts alike in all of them. Four inputs, two of them effects of the label, two features: risk
        at ten times the noise fell from 15 to about 3.7, with IRMv1 to 3.4.

    Avoid:
        Features as many as inputs: if they can express every linear predictor, the penalty is the training risk minus a
        constant and changes nothing, so the layer must be narrow. Fewer samples of an environment in a batch than
        features, where its best head fits anything. Expecting more than IRMv1 where features are well scaled:
        no difference was seen at a large strength.

    Defaults:
        ridge 1e-4 of each feature's mean square, for float32. strength has no default that fits; begin small and
        raise it (``WarmUp``), to 1000 in small problems.

    Cost:
        One pass; a Gram matrix of the features and a linear system for each environment.

    Reference:
        Khezeli, Blaas, Soboczenski, Chia, Kalantari 2021, On Invariance Penalties for Risk Minimization, arXiv
        2106.09777; IRMv1: Arjovsky, Bottou, Gulrajani, Lopez-Paz 2019, arXiv 1907.02893. Of the paper's adaptive form
        we had no readable source. The mean over environments, not the sum. For the squared loss only.

    Args:
        layer: name of the submodule whose output, flattened, the linear head reads.
        environments: their number, at least 2.
        measure: "gram" or "gradient".
        bias: whether the head has an intercept.
        ridge: of "gram", at least 0.
        environment: name of the batch's entry with the environment's id of each sample (B,).
        strength: factor of the penalty.
    """

    scope = "batch"
    reads = ("prediction", "y")
    targets = frozenset({"real"})
    example = {"model": "regressor", "layer": "2", "environments": 2}

    layer: str = knob()
    environments: int = knob(low=2)
    measure: Measure = "gram"
    bias: bool = True
    ridge: float = knob(1e-4, low=0.0)
    environment: str = "environment"
    strength: Scalar = knob(10.0, low=0.0, grid=(1.0, 10.0, 1000.0), log=True)

    def check(self) -> None:
        if self.measure not in get_args(Measure):
            raise ValueError(f"IRM: measure must be 'gram' or 'gradient', got {self.measure!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        if getattr(task, "error", "squared") != "squared":
            raise RecipeError(f"IRM needs the squared loss, Regress('squared'); the task is {task!r}")
        self.taps = (self.layer,)

    def teardown(self, model: nn.Module) -> None:
        self.taps = ()

    def penalty(self, step: Step) -> Tensor:
        if self.environment not in step.batch:
            raise ValueError(f"IRM: the batch has no entry '{self.environment}'; it has {', '.join(step.batch)}")
        found = step.taps[self.layer]
        phi = step.gather((found[0] if isinstance(found, tuple) else found).flatten(1))
        residual = step.gather(step.out["prediction"] - step.batch["y"])
        place = step.gather(step.batch[self.environment])
        with torch.autocast(phi.device.type, enabled=False):
            if self.bias:
                phi = F.pad(phi, (0, 1), value=1.0)
            if self.measure == "gram":
                each = irm_gram_penalty(phi, residual, place, self.environments, self.ridge)
            else:
                each = irm_gradient_penalty(phi, residual, place, self.environments)
            present = (F.one_hot(place.long(), self.environments).sum(0) > 0).sum()
        return each.sum() / present
