"""N:M masks learned under Adam with a second moment frozen before they bite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ..core import RecipeError, implements
from ..parts.masks import nm_mask, unshared
from ..weights._layers import CONV, LINEAR, TRANSPOSED

__all__ = ["STEPAdam", "nm_groups", "variance_settled"]


def nm_groups(model: nn.Module, n: int = 2, m: int = 4, layers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Parameter groups for ``STEPAdam``: n:m masks on weights of layers, none on all other trainable parameters.

    Args:
        model: weights that several layers share stay dense.
        n, m: kept, and group size, along the input dimension.
        layers: names of linear layers and convolutions; empty: all whose input dimension m divides.

    Raises:
        RecipeError: if no weight can be masked, or one of those named cannot.
    """
    weights: dict[str, tuple[nn.Parameter, int]] = {}
    found = [k for k, v in model.named_modules() if isinstance(v, LINEAR + CONV)]
    for name in unshared(model, found):
        layer = model.get_submodule(name)
        dim, weight = (0 if isinstance(layer, TRANSPOSED) else 1), layer.weight
        assert isinstance(weight, nn.Parameter)
        if weight.requires_grad and weight.shape[dim] % m == 0:
            weights[name] = weight, dim
    if unfit := [name for name in layers if name not in weights] or ([] if weights else ["the model"]):
        raise RecipeError(f"no trainable, unshared weight whose input dimension {m} divides in {', '.join(unfit)}")
    chosen = [weights[name] for name in (layers or weights)]
    taken = {id(w) for w, _ in chosen}
    groups = [
        {"params": [w for w, d in chosen if d == dim], "n": n, "m": m, "dim": dim}
        for dim in (0, 1)
        if any(d == dim for _, d in chosen)
    ]
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    return groups + ([{"params": rest}] if rest else [])


def variance_settled(changes: Tensor, eps: float, mean: Literal["arithmetic", "geometric"] = "arithmetic") -> Tensor:
    """Whether Adam's second moment has stopped changing: mean of the last window's changes below ``eps``.

    Args:
        changes: z = mean |v_t - v_{t-1}| over all coordinates, of the last 1 / (1 - beta2) updates, shape (T,).
        eps: threshold, in units of squared gradients.
        mean: how the window is averaged.

    Returns:
        a boolean scalar. Under steady gradient noise of standard deviation s the changes do not fade: they stay near
        (1 - beta2) E|g^2 - v|, about 0.97 (1 - beta2) s^2 for Gaussian noise. So this tests the size of gradients.
    """
    return (changes.mean() if mean == "arithmetic" else changes.log().mean().exp()) < eps


@implements("step-nm-sparsity")
class STEPAdam(torch.optim.Optimizer):
    r"""STEP: Adam that first trains dense, then freezes its second moment and learns N:M masks.

    Computes:
        Until the switch plain Adam. From then on the second moment, its bias correction included, is a fixed
        preconditioner; the parameters hold the pruned weights, so the model is n:m sparse from then on, and the dense
        weights, kept in the optimizer's state, receive the gradient taken at the pruned ones.

    Formula:
        z_t = \tfrac{1}{d} \|v_t - v_{t-1}\|_1
        t_0 = \min \{ t : \tfrac{1}{T} \sum_{i=0}^{T-1} z_{t-i} < \epsilon \}, \quad T = 1 / (1-\beta_2)
        g = \nabla L(\Pi_w \odot w) + \lambda (1 - \Pi_w) \odot w
        w \leftarrow w - \eta \hat m / (\sqrt{\hat v_{t_0}} + \epsilon)

    Helps:
        N:M sparse weights from one training run with Adam, a share of it dense.

    Avoid:
        floor=0, the paper's rule, on small nets: after the switch gradients are several times larger, units that were
        silent wake up where v is nearly 0, and training diverged or ended near chance. Expecting more accuracy than
        from masks under plain Adam (``freeze=False, switch=0``): on digits there was no gap to close at 1:8, and at
        1:16 with 600 scans the frozen moment lost 3 points.

    Defaults:
        Adam's. Automatic switch between a tenth and a half of ``steps``; with gradients of ordinary size only the later
        end switches. floor 1 is ours: it stops steps from exceeding those of a typical coordinate.

    Cost:
        One pass. Before the switch Adam's memory, after it the dense weights in addition; between the two ends of the
        automatic switch each update waits for the device.

    Reference:
        Lu, Agrawal, Subramanian, Rybakov, De Sa, Yazdanbakhsh 2023, STEP: Learning N:M Structured Sparsity Masks from
        Scratch with Precondition, arXiv 2302.01172, Algorithms 1 and 2. The claim that the automatic switch finds the
        point where the variance settles is not borne out: see ``variance_settled``.

    Args:
        params: parameters or groups. A group may hold n, m and dim (``nm_groups`` makes such groups); groups without
            n are dense throughout.
        lr, betas, eps: Adam's.
        steps: number of updates to come, for the automatic switch.
        switch: "auto", "geometric" (the same with a geometric mean), or the number of dense updates.
        decay: lambda, pulls hidden weights to 0 (SR-STE).
        floor: least denominator after the switch, in units of each tensor's root mean square of sqrt(v).
        freeze: False: the second moment goes on (plain Adam with masks).
        maximize: ascend.

    Raises:
        ValueError: for settings out of range, or an automatic switch without ``steps``.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        steps: int | None = None,
        switch: int | Literal["auto", "geometric"] = "auto",
        decay: float = 0.0,
        floor: float = 1.0,
        freeze: bool = True,
        maximize: bool = False,
    ) -> None:
        if min(lr, eps, decay, floor) < 0 or not all(0 <= b < 1 for b in betas):
            raise ValueError(
                "STEPAdam needs lr, eps, decay and floor of at least 0 and betas in [0, 1), "
                f"got {lr:g}, {eps:g}, {decay:g}, {floor:g} and {betas}"
            )
        if isinstance(switch, str) and (switch not in ("auto", "geometric") or not steps):
            raise ValueError(f"STEPAdam: switch is a number of updates, or 'auto' with steps=; got {switch!r}, {steps}")
        if switch == 0 and freeze:
            raise ValueError("STEPAdam: switch=0 leaves no second moment to freeze; set freeze=False")
        super().__init__(
            params,
            {
                "lr": lr, "betas": betas, "eps": eps, "decay": decay, "floor": floor, "freeze": freeze,
                "maximize": maximize, "n": None, "m": None, "dim": 1, "switch": switch, "steps": steps,
            },
        )  # fmt: skip
        lead = self.param_groups[0]
        lead |= {"updates": 0, "sparse": False, "changes": None}  # in a group, so that state_dict keeps them

    @property
    def sparse(self) -> bool:
        """Whether the switch has happened."""
        return bool(self.param_groups[0]["sparse"])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lead = self.param_groups[0]
        self._switch_if_due()  # here for switch=0 alone: all others saw to it at the end of the update before
        lead["updates"] += 1
        watch = isinstance(lead["switch"], str) and not lead["sparse"]
        changes: list[tuple[Tensor, int]] = []
        for group in self.param_groups:
            self._update(group, lead["sparse"], changes if watch else None)
        if changes:
            size = sum(n for _, n in changes)
            total = torch.stack([z.to(changes[0][0]) for z, _ in changes]).sum() / size
            if lead["changes"] is None:
                lead["changes"] = total.new_full((max(1, round(1 / (1 - lead["betas"][1]))),), math.inf)
            lead["changes"][lead["updates"] % len(lead["changes"])] = total
        self._switch_if_due()  # now, so that the next gradient is taken at the pruned weights
        return loss

    def _due(self) -> bool:
        lead = self.param_groups[0]
        done, switch, steps = lead["updates"], lead["switch"], lead["steps"]
        if not isinstance(switch, str):
            return bool(done >= switch)
        if done < 0.1 * steps or lead["changes"] is None:
            return False
        mean: Literal["arithmetic", "geometric"] = "arithmetic" if switch == "auto" else "geometric"
        return done >= 0.5 * steps or bool(variance_settled(lead["changes"], lead["eps"], mean))

    def _switch_if_due(self) -> None:
        """Freeze the second moment, keep the dense weights, and let the parameters be the pruned ones."""
        if self.sparse or not self._due():
            return
        self.param_groups[0]["sparse"] = True
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if group["freeze"] and "exp_avg_sq" in state:
                    self._freeze(group, state)
                if group["n"]:
                    state["dense"] = p.detach().clone()
                    p.mul_(nm_mask(p, group["n"], group["m"], group["dim"]))

    def _freeze(self, group: dict[str, Any], state: dict[str, Any]) -> None:
        root = (state.pop("exp_avg_sq") / (1 - group["betas"][1] ** float(state["step"]))).sqrt()
        least = group["floor"] * root.square().mean().sqrt()
        state["denominator"] = torch.maximum(root, least).add_(group["eps"])

    def _update(self, group: dict[str, Any], sparse: bool, changes: list[tuple[Tensor, int]] | None) -> None:
        beta1, beta2 = group["betas"]
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        if any(p.grad.is_sparse for p in params):
            raise RuntimeError("STEPAdam does not support sparse gradients")
        grads = [p.grad for p in params]
        grads = list(torch._foreach_neg(grads)) if group["maximize"] else grads
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if "step" not in state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            state["step"] += 1
        masked = sparse and group["n"]
        targets = params
        if masked:
            for p, state in zip(params, states, strict=True):
                if "dense" not in state:  # its first gradient came after the switch
                    state["dense"] = p.detach().clone()
            targets = [s["dense"] for s in states]
            if group["decay"]:
                hidden = torch._foreach_add(targets, params, alpha=-1)  # the parameters hold the masked weights
                grads = list(torch._foreach_add(grads, hidden, alpha=group["decay"]))
        average = [s["exp_avg"] for s in states]
        torch._foreach_lerp_(average, grads, 1 - beta1)
        live = [(s["exp_avg_sq"], g) for s, g in zip(states, grads, strict=True) if "denominator" not in s]
        if live:
            squares, g = [v for v, _ in live], [g for _, g in live]
            before = [v.clone() for v in squares] if changes is not None else []
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, g, g, 1 - beta2)
            if changes is not None:
                moved = torch._foreach_norm(torch._foreach_add(squares, before, alpha=-1), 1)
                changes += [(z, v.numel()) for z, v in zip(moved, squares, strict=True)]
        scales = []
        for state in states:
            if "denominator" in state:
                scales.append(state["denominator"])
                continue
            second = 1 - beta2 ** float(state["step"])
            scales.append(state["exp_avg_sq"].sqrt().div_(math.sqrt(second)).add_(group["eps"]))
        sizes = [-float(group["lr"]) / (1 - beta1 ** float(s["step"])) for s in states]
        torch._foreach_addcdiv_(targets, average, scales, sizes)
        if masked:
            masks = [nm_mask(w, group["n"], group["m"], group["dim"]) for w in targets]
            torch._foreach_copy_(params, torch._foreach_mul(targets, masks))
