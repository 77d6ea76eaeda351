"""Local linearity of the loss beside single-step adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ..core.task import Batch, weighted_mean
from ..parts.attacks import Box, fgsm, random_start
from ._inputs import real_rows

__all__ = ["ELLE", "linearity_error"]

Attack = Literal["fgsm", "n-fgsm", "none"]


def linearity_error(
    loss: Callable[[Tensor], Tensor], x: Tensor, radius: float, generator: torch.Generator | None = None
) -> Tensor:
    """How far the loss is from linear between two random points near each input.

    Args:
        loss: one value per sample, (B,), of inputs shaped like ``x``.
        x: (B, ...), floating point.
        radius: half the edge of the box around each input from which the points are drawn.
        generator: of the points a, b and the share s.

    Returns:
        (loss(c) - (1 - s) loss(a) - s loss(b))^2 with c = (1 - s) a + s b, shape (B,); Abad Rocamora et al. 2024 (arXiv
        2401.11618). Three passes and no second derivative. For a quadratic x'Ax with symmetric A in d dimensions it is
        (s (1 - s) (a - b)'A(a - b))^2, on average radius^4 / 30 (4/9 (tr(A)^2 + 2 ||A||^2) - 4/15 sum A_ii^2).
    """
    a, b = (random_start(x, radius, "linf", generator) for _ in range(2))
    share = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
    between = torch.lerp(a, b, share.view(-1, *[1] * (x.ndim - 1)))
    at_a, at_b, at_c = loss(a), loss(b), loss(between)
    return (at_c - torch.lerp(at_a, at_b, share.to(at_a.dtype))).square()


class ELLE(Method, paper="elle"):
    r"""Local linearity: adversarial training by one step, with a loss that stays linear where the step looks.

    Computes:
        The task's loss at x attacked by one gradient step ("fgsm", or "n-fgsm": from a point with noise of twice the
        radius, not projected), and strength times the squared deviation of the loss from linear between two random
        points of the box around the clean x. adaptive=True (ELLE-A) starts at 0, goes to the full strength for the
        next update when the error exceeds the mean of all errors so far by ``sensitivity`` standard deviations, and
        otherwise decays.

    Formula:
        E = \left( \ell(c) - (1 - s) \ell(a) - s \ell(b) \right)^2, \quad c = (1 - s) a + s b
        a, b \sim x + U[-\epsilon, \epsilon]^d, \quad s \sim U[0, 1]

    Helps:
        Against catastrophic overfitting, when a net trained on one-step attacks learns to fool that step and is
        defenceless against several.

    Avoid:
        Carrying a strength over: the error grows with the fourth power of the radius and the square of the loss. Where
        nothing overfits catastrophically (MLPs on digits) it buys no accuracy under attack: strength 1000 there cost 6
        points of clean and 7 of attacked accuracy. Half precision, in which the deviation is mostly rounding.

    Defaults:
        radius 8/255 and strength 4000, the authors' magnitude for CIFAR-10; sensitivity 2, decay 0.99; FGSM.

    Cost:
        4.67 passes: the attack's forward and input gradient, the attacked pass, and three passes near the input.

    Reference:
        Abad Rocamora, Liu, Chrysos, Olmos, Cevher 2024, Efficient Local Linearity Regularization to Overcome
        Catastrophic Overfitting, arXiv 2401.11618, and its released code, whose history is all past batches and whose
        deviation is the population's. The three points go through the net one after the other, with the same dropout
        masks and statistics of their own.

    Args:
        radius: of the attack and of the box of random points, in units of the input.
        attack: "fgsm", "n-fgsm", or "none" beside adversarial training of another kind.
        adaptive: switch the strength on by the error.
        sensitivity: standard deviations above the mean that switch it on.
        decay: factor of the strength after an update that does not.
        box: lowest and highest legal input, to which "fgsm" is clipped.
        strength: factor of the deviation; with ``adaptive`` its largest.
    """

    reads = ("x",)
    null = {"radius": 0.0}
    exact = False  # every microbatch draws its own points

    radius: float = knob(8 / 255, low=0.0)
    attack: Attack = "fgsm"
    adaptive: bool = False
    sensitivity: float = knob(2.0, low=0.0)
    decay: float = knob(0.99, low=0.0, high=1.0)
    box: Box | None = None
    strength: Scalar = knob(4000.0, low=0.0, grid=(400.0, 4000.0, 40000.0), log=True)

    def check(self) -> None:
        if self.attack not in get_args(Attack):
            raise ValueError(f"ELLE: attack must be 'fgsm', 'n-fgsm' or 'none', got {self.attack!r}")

    def setup(self, model: nn.Module, task: Task) -> None:
        like = next(model.parameters())
        self.register_buffer("level", torch.zeros(2, device=like.device))  # of this update, and of the next
        self.register_buffer("history", torch.zeros(3, device=like.device))  # count, mean, sum of squared deviations
        self.level: Tensor
        self.history: Tensor

    def batch(self, batch: Batch, step: Step) -> Batch:
        if self.radius == 0:
            return batch
        x = real_rows(batch["x"], "ELLE")
        attacked = x
        if self.attack != "none":
            step.batch = batch  # what the attack's passes read
            noise, start, box = self.attack == "n-fgsm", x, self.box
            if noise:
                start, box = random_start(x, 2 * self.radius, "linf", step.rng(self, "noise")), None
            attacked = fgsm(_loss(step), start, self.radius, box=box)
        return {**batch, "x": attacked, "x before the attack": x}

    def penalty(self, step: Step) -> Tensor | None:
        if self.radius == 0:
            return None
        error = linearity_error(_loss(step), step.batch["x before the attack"], self.radius, step.rng(self))
        if not self.adaptive:
            return error
        if step.first:
            if step.micro == 0:
                self.level[0] = self.level[1]
            mean = weighted_mean(error.detach(), step.task.weight(step.batch))
            self._remember(step.gather(mean.view(1)).mean().to(self.history))
        return self.level[0].clone() * error  # the buffer changes in place

    def _remember(self, error: Tensor) -> None:
        """Judge this error by those before, then add it to them (Welford)."""
        count, mean, squares = self.history.unbind()
        spike = (count > 2) & (error > mean + self.sensitivity * (squares / count.clamp(min=1)).sqrt())
        self.level[1] = torch.where(spike, 1.0, self.decay * self.level[1])
        delta = error - mean
        after = mean + delta / (count + 1)
        self.history.copy_(torch.stack([count + 1, after, squares + delta * (error - after)]))

    def passes(self) -> float:
        if self.radius == 0:
            return 1.0
        return 4.0 if self.attack == "none" else 4.0 + 2 / 3


def _loss(step: Step) -> Callable[[Tensor], Tensor]:
    """The task's loss, one value a sample, as a function of the input."""
    return lambda x: step.task.loss(step.forward(x=x), step.batch)
