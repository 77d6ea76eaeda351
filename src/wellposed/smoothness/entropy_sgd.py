"""Entropy-SGD: descent of the local entropy, toward the mean of a chain around the weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core import implements

__all__ = ["EntropySGD", "langevin_step_", "local_entropy_gradient"]


@torch.no_grad()
def langevin_step_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    centre: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    lr: float,
    gamma: float,
    noise: float = 0.0,
    momentum: float = 0.0,
    generator: torch.Generator | None = None,
) -> None:
    """One step of the chain, in place: down f(w) + gamma / 2 ||w - centre||^2, with Nesterov's momentum and noise.

    Args:
        weights: moved.
        grads: of f there.
        centre: what the chain is tied to.
        buffers: of the momentum, moved as well; zeros at the start of a chain. Unused at momentum 0.
        lr: step of the chain.
        gamma: how tightly it is tied.
        noise: the step adds sqrt(lr) * noise * N(0, 1), so that without momentum and at small lr the chain samples
            exp(-(f + gamma / 2 ||w - centre||^2) / T) at the temperature T = noise^2 / 2.
        momentum: in [0, 1).
        generator: of the noise, on the weights' device.
    """
    if not weights:
        return
    slope = list(torch._foreach_sub(list(weights), list(centre)))
    torch._foreach_mul_(slope, gamma)
    torch._foreach_add_(slope, list(grads))
    if momentum:
        torch._foreach_mul_(list(buffers), momentum)
        torch._foreach_add_(list(buffers), slope)
        torch._foreach_add_(slope, list(buffers), alpha=momentum)
    torch._foreach_add_(list(weights), slope, alpha=-lr)
    if noise:
        drawn = [torch.randn(w.shape, generator=generator, dtype=w.dtype, device=w.device) for w in weights]
        torch._foreach_add_(list(weights), drawn, alpha=lr**0.5 * noise)


def local_entropy_gradient(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    gamma: float,
    steps: int = 20,
    *,
    lr: float = 0.1,
    noise: float = 1e-4,
    average: float = 0.75,
    momentum: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate of the gradient of the negative local entropy, gamma (x - <x'>), by a chain of ``steps``.

    On f = x'Hx / 2 it is gamma (H + gamma)^-1 H x at every temperature; a finite chain, which starts at x, is biased
    toward 0: with gamma 0.5, lr 0.1 and 20 steps it reaches 64, 92 and 99 % of that at H = 0.1, 1 and 4.

    Args:
        gradient: of f, as a function of points shaped like ``x``.
        x: where.
        gamma: how tightly the chain is tied to ``x``.
        steps: of the chain, at least 1.
        lr, noise, momentum, generator: of its steps, see ``langevin_step_``.
        average: memory of the running mean of the chain, mean <- average * mean + (1 - average) * x'; starts at x.

    Returns:
        shaped like ``x``; Chaudhari et al. 2017 (arXiv 1611.01838), Eqs. 4 and 7.
    """
    moving, mean, buffer = x.detach().clone(), x.detach().clone(), torch.zeros_like(x)
    for _ in range(steps):
        langevin_step_(
            [moving], [gradient(moving)], [x.detach()], [buffer],
            lr=lr, gamma=gamma, noise=noise, momentum=momentum, generator=generator,
        )  # fmt: skip
        mean.lerp_(moving, 1 - average)
    return gamma * (x.detach() - mean)


@implements("entropy-sgd")
class EntropySGD(Optimizer):
    r"""Entropy-SGD: descend the local entropy, which prefers wide valleys to deep ones.

    Computes:
        One update is a chain of ``inner_steps`` gradient steps of f(w') + gamma / 2 ||w' - w||^2 from w, with
        Nesterov's momentum and a little noise, and then w <- w - lr (w - mu) with mu the chain's running mean: lr 1
        goes to mu. gamma grows by the factor 1 + growth each update (scoping).

    Formula:
        F(w) = \log \int \exp\left(-f(w') - \frac{\gamma}{2} \|w - w'\|^2\right) dw'
        -\nabla F(w) = \gamma \, (w - \langle w' \rangle)
        \mu \leftarrow \alpha \mu + (1 - \alpha) w', \quad w \leftarrow w - lr \, (w - \mu)

    Helps:
        Noisy gradients: as with Lookahead, which it nearly is, the weights follow a mean of where SGD goes. No gain was
        claimed on the digits: at equal passes it memorised wrong labels more slowly than SGD with the same step, as SGD
        with a smaller step does.

    Avoid:
        Expecting entropy from the published noise: at 1e-4 the temperature is 5e-9, and the method is averaging around
        a proximal point. In one dimension it finds the wide valley because of noise large enough to leave the narrow
        one; SGD with the same noise does so as often.

    Defaults:
        20 steps with inner_lr 0.1, momentum 0.9, noise 1e-4, gamma 0.03 growing by 0.001, average 0.75: the paper's.
        lr 1 stands for its product eta gamma.

    Cost:
        inner_steps passes an update, and four copies of the weights. Count passes, not updates, in comparisons.

    Reference:
        Chaudhari et al. 2017, Entropy-SGD: Biasing Gradient Descent Into Wide Valleys, arXiv 1611.01838, Algorithm 1.
        The released code scales the noise by sqrt(2 lr) in place of sqrt(lr), passes it through the momentum, and steps
        by lr (w - mu) without gamma; of these only the last is done here.

    Args:
        params: parameters, or groups of them; a group may have settings of its own.
        lr: share of the way to the chain's mean, above 0.
        inner_steps: calls of the closure in an update, the same for all groups.
        inner_lr: step of the chain.
        gamma: how tightly the chain is tied to the weights.
        growth: of gamma, per update.
        noise: of the chain.
        average: memory of the chain's mean, in [0, 1).
        momentum: of the chain, Nesterov's, in [0, 1).
        weight_decay: times the weights, added to the gradients in the chain.
        seed: of the noise, which is a function of it and of the number of updates.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        *,
        inner_steps: int = 20,
        inner_lr: float = 0.1,
        gamma: float = 0.03,
        growth: float = 1e-3,
        noise: float = 1e-4,
        average: float = 0.75,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        positive = {"lr": lr, "inner_steps": inner_steps, "inner_lr": inner_lr}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"EntropySGD: {name} must be above 0, got {value}")
        for name, value in {"gamma": gamma, "growth": growth, "noise": noise, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"EntropySGD: {name} must be at least 0, got {value}")
        for name, value in {"average": average, "momentum": momentum}.items():
            if not 0 <= value < 1:
                raise ValueError(f"EntropySGD: {name} must be in [0, 1), got {value}")
        self.inner_steps, self.seed = inner_steps, seed
        super().__init__(
            params,
            {
                "lr": lr, "inner_lr": inner_lr, "gamma": gamma, "growth": growth, "noise": noise, "average": average,
                "momentum": momentum, "weight_decay": weight_decay, "updates": 0,
            },
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss. It is called
                ``inner_steps`` times; let it take the next batch each time.

        Returns:
            what the first call of the closure returned: the loss at the weights before the update.

        Raises:
            RuntimeError: without a closure, or where gradients are sparse.
        """
        if closure is None:
            raise RuntimeError("EntropySGD takes several gradients an update: call step(closure), as with LBFGS")
        groups = [(group, list(group["params"])) for group in self.param_groups]
        centres = [[p.clone() for p in params] for _, params in groups]
        means = [[c.clone() for c in centre] for centre in centres]
        buffers = [[torch.zeros_like(p) for p in params] for _, params in groups]
        generators = self._generators()
        first = None
        for i in range(self.inner_steps):
            with torch.enable_grad():
                loss = closure()
            first = loss if i == 0 else first
            for (group, params), centre, mean, buffer in zip(groups, centres, means, buffers, strict=True):
                self._inner(group, params, centre, mean, buffer, generators)
        for (group, params), centre, mean in zip(groups, centres, means, strict=True):
            if params:
                torch._foreach_lerp_(centre, mean, group["lr"])
                torch._foreach_copy_(params, centre)
            group["updates"] += 1
        return first

    def _inner(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        centre: list[Tensor],
        mean: list[Tensor],
        buffer: list[Tensor],
        generators: dict[torch.device, torch.Generator],
    ) -> None:
        """One step of a group's chain; parameters that got no gradient stay."""
        here = [i for i, p in enumerate(params) if p.grad is not None]
        if not here:
            return
        grads = [params[i].grad for i in here]
        if any(g is not None and g.is_sparse for g in grads):
            raise RuntimeError("EntropySGD does not support sparse gradients")
        weights = [params[i] for i in here]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))  # type: ignore[arg-type]
        langevin_step_(
            weights, grads, [centre[i] for i in here], [buffer[i] for i in here],  # type: ignore[arg-type]
            lr=group["inner_lr"], gamma=group["gamma"] * (1 + group["growth"]) ** group["updates"],
            noise=group["noise"], momentum=group["momentum"], generator=generators[weights[0].device],
        )  # fmt: skip
        torch._foreach_lerp_([mean[i] for i in here], weights, 1 - group["average"])

    def _generators(self) -> dict[torch.device, torch.Generator]:
        """One a device; functions of the seed and of how far training is, so that resuming needs no state."""
        updates = self.param_groups[0]["updates"]
        devices = dict.fromkeys(p.device for group in self.param_groups for p in group["params"])
        seed = zlib.crc32(repr((self.seed, updates)).encode())
        return {device: torch.Generator(device).manual_seed(seed) for device in devices}
