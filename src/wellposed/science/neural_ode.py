"""A neural ODE as a layer that says what its adaptive solver found: evaluations, local errors, stiffness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["NeuralODE", "SolverEstimates"]

TINY = 1e-12  # keeps the stiffness of a solution at rest finite; its square is still a float32


class SolverEstimates(NamedTuple):
    """What an adaptive solver knew at the end of an integration.

    Attributes:
        error: sum over accepted steps of E_n |h_n|, a scalar. E_n is what step-size control compares with 1: the rms
            over all entries of the embedded error estimate in units of its tolerance atol + rtol max(|y_n|, |y_n+1|).
        stiffness: sum over accepted steps of ||k_7 - k_6|| / ||g_7 - g_6||, a scalar, from the slopes k and the states
            g of the last two stages, which are both at the step's end: an estimate of the largest eigenvalue.
        evaluations: of the dynamics, those of rejected steps and of the choice of the first step included.
        steps, rejected: numbers of accepted and of rejected steps.
    """

    error: Tensor
    stiffness: Tensor
    evaluations: int
    steps: int
    rejected: int


class NeuralODE(nn.Module):
    """The solution of dy/dt = dynamics(y), from an initial value: a layer whose depth its solver chooses.

    Integrates with the adaptive Dormand-Prince pair of ``torchdiffeq`` (extra ``science``) and differentiates through
    its accepted steps, for given step sizes: their choice is no part of the gradient. What the backward pass needs of
    every accepted step is kept (there is no adjoint equation). Samples of a batch share the steps. Wants dynamics that
    are a function: dropout inside is another one at every evaluation, and batch statistics depend on the steps.
    Autocast is off inside. Each step waits for the device, to decide on the next.
    Chen, Rubanova, Bettencourt, Duvenaud 2018, Neural Ordinary Differential Equations, arXiv 1806.07366.

    Args:
        dynamics: states (B, ...) -> their slopes, of the same shape.
        times: rising or falling; of two the state at the last is returned, of more the states at all of them, the
            initial one included, (B, times, ...).
        autonomous: whether ``dynamics`` is called with the state alone; otherwise with the time, a scalar, and the
            state.
        rtol, atol: tolerances of a step's error; above 0.

    Attributes:
        last: the ``SolverEstimates`` of the last pass, without a graph; None before the first.

    Example:
        >>> field = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        >>> model = nn.Sequential(NeuralODE(field), nn.Linear(2, 3))
        >>> model(torch.randn(8, 2)).shape
        torch.Size([8, 3])
        >>> model[0].last.evaluations >= 8
        True
    """

    def __init__(
        self,
        dynamics: nn.Module,
        times: Sequence[float] = (0.0, 1.0),
        *,
        autonomous: bool = True,
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> None:
        super().__init__()
        gaps = [b - a for a, b in pairwise(times)]
        if not gaps or not (all(g > 0 for g in gaps) or all(g < 0 for g in gaps)):
            raise ValueError(f"NeuralODE: times rise or fall, and are at least two; got {tuple(times)}")
        if not (rtol > 0 and atol > 0):
            raise ValueError(f"NeuralODE: rtol and atol must be above 0, got {rtol} and {atol}")
        self.dynamics, self.times, self.autonomous = dynamics, tuple(times), autonomous
        self.rtol, self.atol = rtol, atol
        self.estimates = Estimates()
        self.last: SolverEstimates | None = None

    def forward(self, y: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the number of steps depends on the data: nothing a graph could hold
            return torch.compiler.disable(self._solve)(y)  # type: ignore[no-untyped-call]
        return self._solve(y)

    def _solve(self, y: Tensor) -> Tensor:
        odeint = _odeint()
        first = next(self.dynamics.parameters(), None)
        dtype = torch.promote_types(y.dtype, torch.float32) if first is None else first.dtype
        if dtype.itemsize < 4:
            raise ValueError(f"NeuralODE integrates in float32 at least; its dynamics are in {dtype}")
        record = _Record(self.dynamics, self.autonomous, y)
        clock = torch.float32 if y.device.type == "mps" else torch.float64  # Apple's devices have no float64
        t = torch.tensor(self.times, dtype=clock, device=y.device)
        try:
            with torch.autocast(y.device.type, enabled=False):
                states = odeint(
                    record, y.to(dtype), t, rtol=self.rtol, atol=self.atol, method="dopri5",
                    options={"norm": record.norm, "dtype": clock},
                )  # fmt: skip
        except AssertionError as stuck:  # the solver's; anybody else's goes its way
            if not (why := str(stuck)).startswith(("underflow in dt", "non-finite values")):
                raise
            raise RuntimeError(
                f"NeuralODE: the solver is stuck after {record.evaluations} evaluations ({why.partition(':')[0]}): the "
                "dynamics are too steep or not finite; loosen rtol and atol, or train with a smaller step"
            ) from stuck
        found: SolverEstimates = self.estimates(record.estimates())
        self.last = found._replace(error=found.error.detach(), stiffness=found.stiffness.detach())
        return states[-1] if len(self.times) == 2 else states.movedim(0, 1)

    def extra_repr(self) -> str:
        return f"times={self.times}, autonomous={self.autonomous}, rtol={self.rtol}, atol={self.atol}"


class Estimates(nn.Module):
    """Gives back the estimates of a pass, with their graph: the place where methods listen."""

    def forward(self, found: SolverEstimates) -> SolverEstimates:
        return found


class _Record:
    """The dynamics, as the solver calls them, and its estimates as they come by: nothing is evaluated for them."""

    def __init__(self, dynamics: Callable[..., Tensor], autonomous: bool, like: Tensor) -> None:
        self.dynamics, self.autonomous = dynamics, autonomous
        self.evaluations, self.steps, self.rejected = 0, 0, 0
        self.error = self.stiffness = self.size = torch.zeros((), device=like.device)
        self.stages: list[tuple[Tensor, Tensor]] = []  # state and slope of the last two evaluations
        self.stepping = False

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        slope: Tensor = self.dynamics(y) if self.autonomous else self.dynamics(t, y)
        if slope.shape != y.shape:
            raise ValueError(
                f"NeuralODE: the dynamics give a slope {tuple(slope.shape)} for a state {tuple(y.shape)}; the shapes "
                "must be the same"
            )
        self.evaluations += 1
        self.stages = [*self.stages[-1:], (y, slope)]
        return slope

    def norm(self, x: Tensor) -> Tensor:
        """Rms over all entries. What step-size control does with it is no part of the gradient."""
        size = _length(x) / x.numel() ** 0.5
        if self.stepping:  # not in the choice of the first step
            self.size = size
        return size.detach()

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.stepping = True

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        (before, slope_before), (end, slope) = self.stages
        self.steps += 1
        self.error = self.error + self.size * h.abs().to(self.size.dtype)
        self.stiffness = self.stiffness + _length(slope - slope_before) / (_length(end - before) + TINY)

    def callback_reject_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.rejected += 1

    def estimates(self) -> SolverEstimates:
        return SolverEstimates(self.error, self.stiffness, self.evaluations, self.steps, self.rejected)


def _length(x: Tensor) -> Tensor:
    """Euclidean, of all entries; its gradient at 0 is 0."""
    length: Tensor = torch.linalg.vector_norm(x)
    return length


def _odeint() -> Callable[..., Any]:
    try:
        from torchdiffeq import odeint
    except ModuleNotFoundError:
        raise ModuleNotFoundError("NeuralODE integrates with torchdiffeq: pip install 'wellposed[science]'") from None
    return odeint
