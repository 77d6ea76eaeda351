"""Solver heuristics: neural ODEs that are easy to integrate."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from ..core import Method, RecipeError, Step, Task, knob
from ..core.schedules import Scalar
from .neural_ode import NeuralODE

__all__ = ["SolverHeuristics"]

Estimate = Literal["error", "stiffness"]


class SolverHeuristics(Method, paper="solver-heuristics-reg"):
    r"""Solver heuristics: neural ODEs whose adaptive solver needs few steps.

    Computes:
        strength times the sum over the model's ``NeuralODE`` layers of what their solver estimates anyway: the local
        error of each step in units of its tolerance, times the step ("error"), or the stiffness at each step's end
        ("stiffness"). Step sizes are held constant in the gradient; at the next pass the solver finds that it may take
        longer ones. List the method twice for both.

    Formula:
        E_n = \operatorname{rms}\left(\frac{h_n \sum_i (b_i - \tilde b_i) k_i}{a + r \max(|y_n|, |y_{n+1}|)}\right)
        R_E = \sum_n E_n |h_n|
        R_S = \sum_n \frac{\lVert k_7 - k_6 \rVert}{\lVert g_7 - g_6 \rVert}

    Helps:
        Neural ODEs that are slow at prediction and in training. On digits evaluations of the dynamics fell by 44 %, and
        accuracy did not.

    Avoid:
        Judging it by the value of the term: the solver chooses steps so that the error stays near its tolerance, and
        the term moves either way while ``NeuralODE.last.evaluations`` falls. Strong where only a folded flow can solve
        the task: between a disc and a ring around it in the plane, 0.1 kept nets from learning at all, and 0.01 took
        off a fifth of the evaluations. Where probabilities matter: early in training the nets on digits were less sure,
        and their calibration error rose from 2 to 6 points. At loose tolerances, where a handful of steps is enough
        already. A layer called several times in a pass counts its last call only.

    Defaults:
        strength 0.1.

    Cost:
        One pass, without an evaluation of the dynamics more than the solver makes; in the end it makes fewer.

    Reference:
        Pal, Ma, Shah, Rackauckas 2021, Opening the Blackbox: Accelerating Neural Differential Equations by Regularizing
        Internal Solver Heuristics, arXiv 2105.03918. Its text has the error itself; the error in units of the
        tolerance, as here, is what the authors' code regularises, and keeps one strength good for all tolerances. That
        code takes means over steps, the stiffness times the step, and anneals from 100 to 10. Ordinary equations only.

    Args:
        estimate: "error" or "stiffness".
        strength: factor of the penalty.
    """

    scope = "batch"  # steps are shared, and so is the norm
    exact = False
    stops = True  # step sizes
    example = {"model": "ode"}

    estimate: Estimate = "error"
    strength: Scalar = knob(0.1, low=0.0, grid=(0.03, 0.1, 0.3), log=True)

    def check(self) -> None:
        if self.estimate not in get_args(Estimate):
            raise ValueError(f"SolverHeuristics: estimate must be 'error' or 'stiffness', got {self.estimate!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        layers = [name for name, module in model.named_modules() if isinstance(module, NeuralODE)]
        if not layers:
            raise RecipeError(
                "SolverHeuristics acts on neural ODEs, and the model has none; make its continuous part a "
                "wellposed.science.neural_ode.NeuralODE"
            )
        self.taps = tuple(f"{name}.estimates" if name else "estimates" for name in layers)

    def penalty(self, step: Step) -> Tensor | None:
        terms: list[Tensor] = [getattr(step.taps[tap], self.estimate) for tap in self.taps if tap in step.taps]
        return sum(terms[1:], terms[0]) if terms else None
