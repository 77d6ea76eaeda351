"""Adam with the curvature in place of the gradient's square."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import implements
from ..core.parallel import world_size
from ..parts.curvature import hutchinson_diagonal, hvp
from ._exact_state import ExactState, refuse_sparse

__all__ = ["AdaHessian", "averaged_curvature"]

Average = Literal["kernel", "row", "none"]


def averaged_curvature(diagonal: Tensor, average: Average = "kernel") -> Tensor:
    """|D|, averaged over blocks of weights and spread over them again.

    Args:
        diagonal: an estimate of the Hessian's diagonal, of the weight's shape.
        average: "kernel": over the places of each convolution kernel (axes from the third); "row": over all that leads
            into a unit (axes from the second); "none".

    Returns:
        the same shape. Absolute values come first, as in the authors' code: signs would cancel.
    """
    first = {"kernel": 2, "row": 1, "none": diagonal.ndim}[average]
    size = diagonal.abs()
    if size.ndim <= first:
        return size
    return size.mean(tuple(range(first, size.ndim)), keepdim=True).expand_as(size)


@implements("adahessian")
class AdaHessian(ExactState):
    r"""AdaHessian: Adam whose second moments are those of a randomized estimate of the Hessian's diagonal.

    Computes:
        D = z * (H z) for random signs z, one more differentiation of the gradient; its absolute value averaged over each
        convolution kernel; and Adam's update with the square of that in place of the squared gradient. Call
        ``optimizer.backward(loss)`` in place of ``loss.backward()``, then ``step()``; gradients made by
        ``loss.backward(create_graph=True)`` do as well.

    Formula:
        D = z \odot (H z), \qquad \bar{D} = \mathrm{mean}_{\mathrm{kernel}} |D|
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) \bar{D}_t^2
        \theta_t = (1 - \eta\lambda)\, \theta_{t-1} - \eta \, \frac{m_t / (1 - \beta_1^t)}{\left(v_t / (1 - \beta_2^t)\right)^{k/2} + \epsilon}

    Helps:
        Problems whose curvature differs from one coordinate to the next: a diagonal quadratic of condition 1e4 takes a
        few updates, where Adam at its best rate takes above a hundred.

    Avoid:
        Taking it for a second-order method in general: the same quadratic in a random basis was not solved in 1500
        updates at any rate, where Adam needs 500 to 800. The expected square of D is not the squared diagonal but the
        sum of squares of H's row. Weights in which the loss is linear have D = 0 and move by lr g / eps.

    Defaults:
        The authors' code: lr 0.15 for images, betas (0.9, 0.999), eps 1e-4, power 1, one sample; lr 0.1 here, the
        paper's for translation.

    Cost:
        About three times a gradient, or close to one with ``every`` 10; memory of the graph, three copies of the weights.

    Reference:
        Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney 2021, ADAHESSIAN: An Adaptive Second Order Optimizer for Machine
        Learning, arXiv 2006.00719. Averaging is over kernels only, as in the authors' code; "row" is the paper's block
        for matrices. Attention needs kernels that can be differentiated twice: compute the loss inside
        ``wellposed.parts.curvature.twice_differentiable()``.

    Args:
        params: parameters or groups, as for every ``torch.optim`` optimizer.
        lr: learning rate.
        betas: memories of gradient and squared curvature.
        eps: added to the denominator after the power.
        weight_decay: decoupled, per unit of learning rate.
        power: k; at 0 the curvature is ignored.
        average: blocks that share their curvature, see ``averaged_curvature``.
        samples: sign vectors an estimate.
        every: updates between estimates; in between the last one counts again.
        seed: of the signs, which are the same in every process and after resuming.

    Raises:
        ValueError: for settings out of range.
    """  # noqa: E501

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        *,
        power: float = 1.0,
        average: Average = "kernel",
        samples: int = 1,
        every: int = 1,
        seed: int = 0,
    ) -> None:
        fine = {
            "lr of at least 0": lr >= 0,
            "betas in [0, 1)": all(0 <= b < 1 for b in betas),
            "eps of at least 0": eps >= 0,
            "weight_decay of at least 0": weight_decay >= 0,
            "power in [0, 1]": 0 <= power <= 1,
            f"average among {get_args(Average)}": average in get_args(Average),
            "samples of at least 1": samples >= 1,
            "every of at least 1": every >= 1,
        }
        for wanted, holds in fine.items():
            if not holds:
                raise ValueError(f"AdaHessian needs {wanted}")
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "power": power, "average": average,
        })  # fmt: skip
        self.samples, self.every, self.seed = samples, every, seed
        self.curvature: dict[Tensor, Tensor] = {}  # gathered since the last step

    # ---- gathering
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to ``.grad``, and gather its curvature if it is time; several losses add up.

        Hooks of ``.grad`` run as in an ordinary backward pass, those of DistributedDataParallel too.
        """
        params = self._trained()
        if all(p.grad is None for p in params):  # a new gradient: what was gathered for the last is of no use
            self.curvature = {}
        if not self._due():
            torch.autograd.backward(loss, inputs=params)
            return
        grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        refuse_sparse("AdaHessian", grads)
        used = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
        self._gather([p for p, _ in used], [g for _, g in used])
        # Products whose derivatives are known, so that gradients arrive by the usual way without a second pass.
        torch.autograd.backward([(g.detach() * p).sum() for p, g in used])

    def _trained(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _count(self) -> int:
        """Updates so far."""
        return max((s["step"] for s in self.state.values() if "step" in s), default=0)

    def _due(self) -> bool:
        return self._count() % self.every == 0

    def _gather(self, params: list[Tensor], grads: list[Tensor]) -> None:
        for p, found in zip(params, self._estimate(params, grads), strict=True):
            self.curvature[p] = self.curvature[p] + found if p in self.curvature else found

    def _estimate(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """z * (H z) for gradients that still have their graph; the signs z are a function of seed and update."""
        order = {id(p): str(i) for i, p in enumerate(self._trained())}
        vector = {order[id(p)]: p for p in params}
        slopes = {order[id(p)]: g for p, g in zip(params, grads, strict=True)}
        key = zlib.crc32(repr((self.seed, self._count())).encode())
        g = torch.Generator(params[0].device).manual_seed(key)
        with torch.enable_grad():
            found = hutchinson_diagonal(lambda v: hvp(slopes, vector, v), vector, self.samples, g)
        return list(found.values())

    # ---- updating
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; ``closure`` computes the loss, calls ``optimizer.backward(loss)``, and its value is returned.

        Raises:
            RuntimeError: if it is time for curvature and nobody made it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [p for p in self._trained() if p.grad is not None]
        refuse_sparse("AdaHessian", [p.grad for p in params])
        if self._due() and not self.curvature:
            graphs = [(p, p.grad) for p in params if p.grad is not None and p.grad.requires_grad]
            if params and not graphs:
                raise RuntimeError(
                    "AdaHessian needs the curvature: call optimizer.backward(loss) in place of loss.backward()"
                )
            if graphs:
                self._gather([p for p, _ in graphs], [g for _, g in graphs])
        for p in params:
            if p.grad is not None and p.grad.requires_grad:
                p.grad = p.grad.detach()  # ends the cycle of gradient, graph and weight
        if self.curvature and world_size() > 1:
            for found in self.curvature.values():
                dist.all_reduce(found)
                found.div_(world_size())
        for group in self.param_groups:
            chosen = [p for p in group["params"] if p.grad is not None]
            if chosen:
                self._update(group, chosen)
        self.curvature = {}
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states, (b1, b2) = [self._state(p) for p in params], group["betas"]
        for p, s in zip(params, states, strict=True):
            s["step"] += 1
            if p in self.curvature:
                s["curvature"].copy_(averaged_curvature(self.curvature[p], group["average"]))
        grads = [p.grad.to(s["mean"].dtype) for p, s in zip(params, states, strict=True) if p.grad is not None]
        means, squares, sizes = ([s[k] for s in states] for k in ("mean", "square", "curvature"))
        torch._foreach_lerp_(means, grads, 1 - b1)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, sizes, sizes, 1 - b2)
        fixed = torch._foreach_div(squares, [1 - b2 ** s["step"] for s in states])
        bottom = torch._foreach_pow(fixed, group["power"] / 2)
        torch._foreach_add_(bottom, group["eps"])
        moves = torch._foreach_div(means, [1 - b1 ** s["step"] for s in states])
        torch._foreach_div_(moves, bottom)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, [m.to(p.dtype) for m, p in zip(moves, params, strict=True)], alpha=-group["lr"])

    def _state(self, p: Tensor) -> dict[str, Any]:
        s: dict[str, Any] = self.state[p]
        if not s:
            wide = torch.promote_types(p.dtype, torch.float32)
            s["step"] = 0
            for name in ("mean", "square", "curvature"):
                s[name] = torch.zeros_like(p, dtype=wide)
        return s
