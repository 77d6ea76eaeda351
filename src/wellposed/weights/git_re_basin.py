"""Merging nets that were trained apart: hidden units brought into one order, then interpolation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..core import implements
from ._symmetries import Axis, symmetries

__all__ = [
    "PermutationSpec", "activation_matching", "interpolated", "loss_barrier", "merge_many", "permuted", "ste_matching",
    "weight_matching",
]  # fmt: skip

State = Mapping[str, Tensor]
Permutations = dict[str, Tensor]


@dataclass(frozen=True)
class PermutationSpec:
    """Which axes of which tensors run over the same hidden units.

    Attributes:
        axes: by tensor name, for every axis: None where the order is fixed, the name of the units, or that name and how
            many neighbouring entries belong to a unit (after a flattened feature map, its number of pixels).
        taps: by units, modules whose output runs over them and along which dimension; for ``activation_matching``.
    """

    axes: Mapping[str, Sequence[str | tuple[str, int] | None]]
    taps: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> PermutationSpec:
        """Of a model that ``torch.fx`` can trace, with an input to see shapes.

        Linear layers, convolutions (transposed and depthwise, too), batch and layer norms, elementwise functions,
        pooling, sums and flattening are followed; what meets any other operation stays in place, attention for example.

        Raises:
            ValueError: if it cannot be traced.
        """
        try:
            return cls(*symmetries(model, x))
        except (torch.fx.proxy.TraceError, TypeError, RuntimeError) as error:
            raise ValueError(f"torch.fx cannot trace this model ({error}): give the axes by hand") from error

    def of_tensor(self, name: str) -> tuple[Axis, ...]:
        """Axes of one tensor; empty if none of them may be permuted."""
        return tuple((a, 1) if isinstance(a, str) else a for a in self.axes.get(name, ()))

    def units(self) -> list[str]:
        """Names of all units, in order."""
        return list(dict.fromkeys(axis[0] for name in self.axes for axis in self.of_tensor(name) if axis))

    def sizes(self, state: State) -> dict[str, int]:
        """Number of units by name.

        Raises:
            ValueError: if tensors disagree, or a name is not in ``state``.
        """
        found: dict[str, int] = {}
        for name in self.axes:
            if name not in state or len(self.of_tensor(name)) != state[name].ndim:
                raise ValueError(f"the axes of '{name}' do not fit the model's state")
            for axis, side in zip(self.of_tensor(name), state[name].shape, strict=True):
                if axis and found.setdefault(axis[0], side // axis[1]) * axis[1] != side:
                    raise ValueError(f"'{name}' has {side} entries where {axis[0]} has {found[axis[0]]} x {axis[1]}")
        return found


def permuted(spec: PermutationSpec, perms: Mapping[str, Tensor], state: State) -> dict[str, Tensor]:
    """The state with its units in the order of ``perms``: the net computes what it computed.

    Args:
        spec: which axes.
        perms: by units, the old place of each unit in its new place.
        state: of a model; tensors of any dtype and device.
    """
    return {n: _reordered(t, spec.of_tensor(n), perms) for n, t in state.items()}


def _reordered(tensor: Tensor, axes: Sequence[Axis], perms: Mapping[str, Tensor], but: int = -1) -> Tensor:
    """One tensor in the new order, along all its axes but one."""
    for dim, axis in enumerate(axes):
        if axis and dim != but:
            perm, block = perms[axis[0]].to(tensor.device), axis[1]
            places = (perm[:, None] * block + torch.arange(block, device=perm.device)).flatten()
            tensor = tensor.index_select(dim, places)
    return tensor


def _inner(a: Tensor, b: Tensor, dim: int = 0, block: int = 0) -> Tensor:
    """Inner products of the units of two tensors along ``dim``, (n, n); without ``block`` of the tensors as a whole."""
    wide = torch.promote_types(a.dtype, torch.float32)
    x, y = (
        t.detach().to(wide).movedim(dim, 0).reshape(len(t.movedim(dim, 0)) // block if block else 1, -1) for t in (a, b)
    )
    return x @ y.T


def _assign(gains: Tensor) -> Tensor:
    """The permutation p with the largest sum of gains[i, p(i)]."""
    from scipy.optimize import linear_sum_assignment

    return torch.as_tensor(linear_sum_assignment(gains.double().cpu().numpy(), maximize=True)[1])


@implements("git-re-basin")
@torch.no_grad()
def weight_matching(
    spec: PermutationSpec,
    a: State,
    b: State,
    seed: int = 0,
    sweeps: int = 100,
    start: Mapping[str, Tensor] | None = None,
) -> Permutations:
    r"""Weight matching: the order of one net's hidden units in which its weights lie closest to another's.

    Computes:
        Permutations P that raise the sum over weights of <A, P B>, one group of units at a time in random order: with
        all others held, the best is a linear assignment between slices of A and of B, exactly solved. Ends when a sweep
        gains nothing. Biases and gains of normalisation count as weights, running statistics only follow.

    Formula:
        \max_{P} \sum_l \left\langle W_l^A, P_l W_l^B P_{l-1}^\top \right\rangle_F

    Helps:
        Averaging two nets trained apart: on digits the barrier of the test loss between them fell to a tenth and less.

    Avoid:
        Nets with BatchNorm without new running statistics after merging: those of an average are not the average.
        Narrow nets, whose units have no counterparts. It finds a local optimum; some seeds may be better than others.

    Defaults:
        Starts from the given order.

    Cost:
        A sweep solves one assignment, O(n^3), for each group of n units, on the CPU.

    Reference:
        Ainsworth, Hayase, Srinivasa 2023, Git Re-Basin: Merging Models modulo Permutation Symmetries, arXiv 2209.04836,
        Algorithm 1.

    Args:
        spec: which axes run over the same units; ``PermutationSpec.of(model, x)``.
        a: state dict of the net that stays.
        b: state dict of the net to permute.
        seed: of the order of sweeps.
        sweeps: at most.
        start: permutations to start from.

    Returns:
        by units, for ``permuted``.

    Raises:
        ValueError: if spec and states do not fit.
    """
    sizes = _common_sizes(spec, a, b)
    perms = {u: torch.arange(n) if start is None else start[u].clone() for u, n in sizes.items()}
    weights = [n for n in spec.axes if a[n].is_floating_point() and not n.endswith(("running_mean", "running_var"))]
    holding = {u: [n for n in weights if any(x and x[0] == u for x in spec.of_tensor(n))] for u in sizes}

    def agreement(names: Sequence[str], perms: Mapping[str, Tensor]) -> float:
        return sum(float(_inner(a[n], _reordered(b[n], spec.of_tensor(n), perms))) for n in names)

    g = torch.Generator().manual_seed(seed)
    for _ in range(sweeps):
        better = False
        for i in torch.randperm(len(sizes), generator=g).tolist():
            u = list(sizes)[i]
            products = [
                _inner(a[n], _reordered(b[n], spec.of_tensor(n), perms, but=dim), dim, axis[1])
                for n in holding[u]
                for dim, axis in enumerate(spec.of_tensor(n))
                if axis and axis[0] == u
            ]
            if not products:
                continue
            new = {**perms, u: _assign(torch.stack([p.to(products[0]) for p in products]).sum(0))}
            # A square weight on one group of units is quadratic in its permutation, so the assignment may mislead.
            gain = agreement(holding[u], new) - agreement(holding[u], perms)
            if gain > 1e-12:
                perms, better = new, True
        if not better:
            break
    return perms


def _common_sizes(spec: PermutationSpec, a: State, b: State) -> dict[str, int]:
    sizes = spec.sizes(a)
    if spec.sizes(b) != sizes:
        raise ValueError("the two nets have hidden layers of different widths")
    return sizes


@torch.no_grad()
def activation_matching(spec: PermutationSpec, a: nn.Module, b: nn.Module, batches: Iterable[Tensor]) -> Permutations:
    """The order in which one net's hidden units respond most like another's: the largest sum of products of responses.

    Args:
        spec: with ``taps``, as ``PermutationSpec.of`` gives them; units without any keep their order.
        a, b: the net that stays, and the one to permute.
        batches: inputs; responses are summed over samples, places and taps.

    Returns:
        by units, for ``permuted``; Ainsworth et al. 2023, Section 3.1.
    """
    sizes = _common_sizes(spec, a.state_dict(), b.state_dict())
    products: dict[str, Tensor] = {}
    for x in batches:
        seen = [_responses(spec, model, x) for model in (a, b)]
        for units, modules in spec.taps.items():
            for module, dim in modules:
                found = _inner(seen[0][module], seen[1][module], dim, 1)
                products[units] = products[units] + found if units in products else found
    return {u: _assign(products[u]) if u in products else torch.arange(n) for u, n in sizes.items()}


def _responses(spec: PermutationSpec, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    names = dict.fromkeys(module for modules in spec.taps.values() for module, _ in modules)
    handles = [
        model.get_submodule(n).register_forward_hook(lambda m, args, out, n=n: found.__setitem__(n, out)) for n in names
    ]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def ste_matching(
    spec: PermutationSpec,
    model: nn.Module,
    a: State,
    b: State,
    loss: Callable[[nn.Module, int], Tensor],
    steps: int = 100,
    lr: float = 0.1,
) -> Permutations:
    """Permutations whose midpoint has a low loss: gradients pass straight through the matching to free weights.

    Free weights start as those of ``a``. In each step b is matched to them, the loss of the midpoint of a and the
    matched b is differentiated, and the free weights move as if they were the matched b. The permutations of the least
    loss are returned. Ainsworth et al. 2023, Algorithm 3.

    Args:
        spec: which axes.
        model: computes with given weights; left as it is.
        a, b: state dicts.
        loss: of a model, on a batch of the given number.
        steps: of SGD.
        lr: its rate.
    """
    held = copy.deepcopy(model)
    trained = [n for n, _ in held.named_parameters()]
    free = {n: a[n].detach().clone() for n in trained}
    perms = weight_matching(spec, a, b)
    best, least = perms, float("inf")
    for step in range(steps):
        perms = weight_matching(spec, {**a, **free}, b, start=perms)
        held.load_state_dict(interpolated(a, permuted(spec, perms, b), 0.5))
        held.zero_grad()
        value = loss(held, step)
        torch.autograd.backward(value)
        if float(value.detach()) < least:
            best, least = perms, float(value.detach())
        with torch.no_grad():
            for n in trained:
                if (grad := held.get_parameter(n).grad) is not None:
                    free[n] -= lr * 0.5 * grad  # half of the midpoint is the matched b
    return best


@torch.no_grad()
def interpolated(a: State, b: State, share: float) -> dict[str, Tensor]:
    """(1 - share) a + share b of all floating-point tensors; counts and the like are those of ``a``."""
    return {n: torch.lerp(t, b[n], share) if t.is_floating_point() else t for n, t in a.items()}


@torch.no_grad()
def loss_barrier(
    model: nn.Module, a: State, b: State, loss: Callable[[nn.Module], Tensor | float], points: int = 11
) -> tuple[float, list[float]]:
    """How much worse the way between two nets is than their own losses let expect.

    Args:
        model: computes with given weights; left as it is.
        a, b: state dicts.
        loss: of a model.
        points: on the way, both ends included.

    Returns:
        max over the way of L((1 - s) a + s b) - (1 - s) L(a) - s L(b), at least 0, and the losses on it.
    """
    held = copy.deepcopy(model)
    shares, losses = [i / (points - 1) for i in range(points)], []
    for share in shares:
        held.load_state_dict(interpolated(a, b, share))
        losses.append(float(loss(held)))
    over = [v - (1 - s) * losses[0] - s * losses[-1] for s, v in zip(shares, losses, strict=True)]
    return max(over), losses


@torch.no_grad()
def merge_many(
    spec: PermutationSpec, states: Sequence[State], seed: int = 0, rounds: int = 20
) -> list[dict[str, Tensor]]:
    """All nets in one order: each in turn is matched to the mean of the others, until nothing changes.

    Args:
        spec: which axes.
        states: at least two state dicts.
        seed: of the order in which they take turns.
        rounds: at most.

    Returns:
        the permuted states, to be averaged; Ainsworth et al. 2023, Algorithm 2.
    """
    if len(states) < 2:
        raise ValueError(f"merge_many needs at least two nets, got {len(states)}")
    found = [dict(s) for s in states]
    g = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        changed = False
        for i in torch.randperm(len(found), generator=g).tolist():
            others = [s for j, s in enumerate(found) if j != i]
            mean = {
                n: torch.stack([s[n] for s in others]).mean(0) if t.is_floating_point() else t
                for n, t in others[0].items()
            }
            perms = weight_matching(spec, mean, found[i], seed=seed)
            if any(not torch.equal(p, torch.arange(len(p))) for p in perms.values()):
                found[i], changed = permuted(spec, perms, found[i]), True
        if not changed:
            break
    return found
