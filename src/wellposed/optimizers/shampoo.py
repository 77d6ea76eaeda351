"""Preconditioning each axis of a weight by the second moments of its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..core import implements
from ._exact_state import ExactState, refuse_sparse

__all__ = ["Shampoo", "matrix_inverse_root"]

Root = Literal["eigh", "newton"]
Graft = Literal["none", "sgd", "adagrad", "rmsprop"]
TINY = 1e-10  # added to square roots of diagonal accumulators


@torch.no_grad()
def matrix_inverse_root(a: Tensor, p: int, epsilon: float = 1e-6, method: Root = "eigh") -> Tensor:
    """(A + epsilon lambda_max I)^(-1/p) of symmetric positive semidefinite matrices.

    Args:
        a: (..., n, n).
        p: order of the root, at least 1.
        epsilon: ridge, relative to the largest eigenvalue; what is lost in a matrix that is not of full rank otherwise
            comes back as noise of size epsilon_machine^(-1/p).
        method: "eigh", in float64 (float32 leaves an error of 2e-4 at condition 1e4), or "newton": the coupled Newton
            iteration in the matrix's own type, made of products only.

    Returns:
        the same shape and type; the identity for matrices of zeros.
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    if method == "eigh":
        values, vectors = torch.linalg.eigh(a.double() if a.device.type != "mps" else a)
        top = values[..., -1:]
        values = torch.where(top > 0, values.clamp(min=0) + epsilon * top, 1.0)
        return (vectors * values.pow(-1 / p).unsqueeze(-2) @ vectors.mT).to(a.dtype)
    # Power iteration: where two eigenvalues are close, either will do for the ridge.
    v = a.sum(-1, keepdim=True) + torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    for _ in range(30):
        v = torch.nn.functional.normalize(a @ v, dim=-2)
    top = (v.mT @ a @ v)[..., :1, :1]
    empty = top <= 0
    m = torch.where(empty, eye, a + epsilon * top * eye)
    z = (1 + p) / (2 * torch.linalg.matrix_norm(m).unsqueeze(-1).unsqueeze(-1))
    m, root = m * z, eye * z ** (1 / p)
    # The smallest eigenvalue grows by (1 + 1/p)^p > 2 a step until all are near 1; then convergence is quadratic.
    for _ in range(math.ceil(math.log2(a.shape[-1] / epsilon)) + 6):
        t = ((p + 1) * eye - m) / p
        root, m = root @ t, torch.linalg.matrix_power(t, p) @ m
    return torch.where(empty, eye, root)


@implements("shampoo")
class Shampoo(ExactState):
    r"""Shampoo: an optimizer that preconditions every axis of a weight tensor by a full matrix.

    Computes:
        For a gradient G of order k, second moments of the slices along each axis, L = sum of G G^T for rows; the update
        multiplies each axis by their inverse 2k-th root. Its length is that of a diagonal method's step (grafting);
        then momentum. Roots are recomputed every ``root_every`` updates. Axes are cut into blocks, small neighbouring
        ones after the first are merged (a kernel's channels and pixels, say), vectors get diagonal AdaGrad. Matrices of
        one size are rooted in one batch.

    Formula:
        L_t = \beta_2 L_{t-1} + (1 - \beta_2) G_t G_t^\top, \qquad R_t = \beta_2 R_{t-1} + (1 - \beta_2) G_t^\top G_t
        P_t = L_t^{-1/4} G_t R_t^{-1/4}, \qquad U_t = \frac{\|D_t\|_F}{\|P_t\|_F} P_t
        M_t = \beta_1 M_{t-1} + U_t, \qquad \theta_t = (1 - \eta\lambda)\, \theta_{t-1} - \eta M_t

    Helps:
        Ill-conditioned problems whose directions are mixtures within rows and columns: a bilinear least-squares problem
        took half of Adam's updates, each at its best rate.

    Avoid:
        Counting updates only: a root costs n^3. Roots older than some tens of updates with small batches, where new
        directions are amplified. Adam's rate: momentum adds up (1 / (1 - beta_1) times), so start at a tenth of it.

    Defaults:
        betas (0.9, 0.999), with 1 for the second a plain sum; epsilon 1e-6 of the largest eigenvalue; root_every 10,
        block_size 256 (the paper's image and language models: 100 to 1000 and 1024); graft "rmsprop".

    Cost:
        Products of each gradient with two matrices, and every root_every updates an eigendecomposition in float64 for
        each axis of each block; memory 2 n^2 for each, and two or three copies of the weights.

    Reference:
        Anil, Gupta, Koren, Regan, Singer 2021, Scalable Second Order Optimization for Deep Learning, arXiv 2002.09018;
        Gupta, Koren, Singer 2018 (arXiv 1802.09568). Averages are corrected for their start, as in distributed Shampoo.

    Args:
        params: parameters or groups, as for every ``torch.optim`` optimizer.
        lr: learning rate.
        betas: momentum, and memory of second moments; 1 for their sum.
        epsilon: ridge of the roots, relative.
        weight_decay: decoupled, per unit of learning rate.
        root_every: updates between roots.
        block_size: longest axis of a block.
        graft: whose step length: "rmsprop", "adagrad", "sgd", or "none".
        root: "eigh" or "newton", see ``matrix_inverse_root``.
        maximize: ascend.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        root_every: int = 10,
        block_size: int = 256,
        graft: Graft = "rmsprop",
        root: Root = "eigh",
        maximize: bool = False,
    ) -> None:
        fine = {
            "lr of at least 0": lr >= 0,
            "betas in [0, 1) and (0, 1]": 0 <= betas[0] < 1 and 0 < betas[1] <= 1,
            "epsilon above 0": epsilon > 0,
            "weight_decay of at least 0": weight_decay >= 0,
            "root_every of at least 1": root_every >= 1,
            "block_size of at least 2": block_size >= 2,
            f"graft among {get_args(Graft)}": graft in get_args(Graft),
            f"root among {get_args(Root)}": root in get_args(Root),
        }
        for wanted, holds in fine.items():
            if not holds:
                raise ValueError(f"Shampoo needs {wanted}")
        super().__init__(params, {
            "lr": lr, "betas": betas, "epsilon": epsilon, "weight_decay": weight_decay, "root_every": root_every,
            "block_size": block_size, "graft": graft, "root": root, "maximize": maximize,
        })  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; ``closure`` computes the loss and its gradients, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            refuse_sparse("Shampoo", grads)
            if params:
                self._update(group, params, [g.neg() for g in grads] if group["maximize"] else grads)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        states = [self._state(group, p) for p in params]
        grads = [g.to(s["momentum"].dtype) for g, s in zip(grads, states, strict=True)]
        beta, due = group["betas"][1], list[tuple[dict[str, Any], int]]()
        for g, s in zip(grads, states, strict=True):
            s["step"] += 1
            if s["moments"]:
                _accumulate(s, _blocks(g.reshape(s["shape"]), group["block_size"]), beta)
                if (s["step"] - 1) % group["root_every"] == 0:
                    due += [(s, i) for i in range(len(s["moments"]))]
        _take_roots(due, group)
        squares = [s["squares"] for s in states if "squares" in s]
        if squares:
            held = [g for g, s in zip(grads, states, strict=True) if "squares" in s]
            memory = _memory(group)
            torch._foreach_mul_(squares, memory)
            torch._foreach_addcmul_(squares, held, held, 1.0 if memory == 1 else 1 - memory)
        updates = [self._direction(group, g, s) for g, s in zip(grads, states, strict=True)]
        momenta = [s["momentum"] for s in states]
        torch._foreach_mul_(momenta, group["betas"][0])
        torch._foreach_add_(momenta, updates)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        moves = [m.to(p.dtype) for m, p in zip(momenta, params, strict=True)]
        torch._foreach_add_(params, moves, alpha=-group["lr"])

    def _state(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        s: dict[str, Any] = self.state[p]
        if not s:
            wide = torch.promote_types(p.dtype, torch.float32)
            shape = _merged(p.shape, group["block_size"])
            s["step"], s["shape"] = 0, shape
            s["momentum"] = torch.zeros_like(p, dtype=wide, memory_format=torch.contiguous_format)
            s["moments"], s["roots"] = [], []
            if len(shape) > 1:
                sides = [n for b in _blocks(s["momentum"].view(shape), group["block_size"]) for n in b.shape]
                s["moments"] = [torch.zeros(n, n, dtype=wide, device=p.device) for n in sides]
                s["roots"] = [torch.eye(n, dtype=wide, device=p.device) for n in sides]
            if len(shape) <= 1 or group["graft"] in ("adagrad", "rmsprop"):
                s["squares"] = torch.zeros_like(s["momentum"])
        return s

    def _direction(self, group: dict[str, Any], g: Tensor, s: dict[str, Any]) -> Tensor:
        diagonal = g
        if "squares" in s:
            memory = _memory(group)
            corrected = s["squares"] if memory == 1 else s["squares"] / (1 - memory ** s["step"])
            diagonal = g / (corrected.sqrt() + TINY)
        if not s["moments"]:
            return g if group["graft"] == "sgd" else diagonal
        found = torch.empty(s["shape"], dtype=g.dtype, device=g.device)
        order = len(s["shape"])
        pairs = zip(
            _blocks(found, group["block_size"]), _blocks(g.reshape(s["shape"]), group["block_size"]), strict=True
        )
        for i, (target, block) in enumerate(pairs):
            for dim, root in enumerate(s["roots"][i * order : (i + 1) * order]):
                block = torch.tensordot(block, root, dims=([dim], [0])).movedim(-1, dim)
            target.copy_(block)
        found = found.view(g.shape)
        if group["graft"] == "none":
            return found
        length = torch.linalg.vector_norm(found)
        return found * torch.where(length > 0, torch.linalg.vector_norm(diagonal) / length, 0.0)


def _memory(group: dict[str, Any]) -> float:
    """Of diagonal accumulators: a sum for AdaGrad, and where second moments are summed; 0.999 for RMSProp then."""
    beta: float = group["betas"][1]
    if group["graft"] == "adagrad":
        return 1.0
    return 0.999 if group["graft"] == "rmsprop" and beta == 1 else beta


def _merged(shape: torch.Size, limit: int) -> list[int]:
    """Axes without those of length 1; after the first, neighbours merged as long as they stay within ``limit``."""
    found: list[int] = []
    for n in shape:
        if n == 1:
            continue
        if len(found) > 1 and found[-1] * n <= limit:
            found[-1] *= n
        else:
            found.append(n)
    return found


def _blocks(tensor: Tensor, limit: int) -> list[Tensor]:
    """Views of nearly equal blocks with no axis longer than ``limit``."""
    pieces = [tensor]
    for dim, n in enumerate(tensor.shape):
        length = math.ceil(n / math.ceil(n / limit))
        pieces = [b for piece in pieces for b in torch.split(piece, length, dim)]
    return pieces


def _accumulate(s: dict[str, Any], blocks: list[Tensor], beta: float) -> None:
    moments = iter(s["moments"])
    for block in blocks:
        for dim in range(block.ndim):
            rows = block.movedim(dim, 0).flatten(1)
            next(moments).addmm_(rows, rows.T, beta=beta, alpha=1.0 if beta == 1 else 1 - beta)


def _take_roots(due: list[tuple[dict[str, Any], int]], group: dict[str, Any]) -> None:
    """All roots of one size and order in one batch."""
    batches: dict[Any, list[tuple[dict[str, Any], int]]] = {}
    for s, i in due:
        m = s["moments"][i]
        batches.setdefault((len(m), len(s["shape"]), m.dtype, m.device), []).append((s, i))
    beta = group["betas"][1]
    for (_, order, _, _), members in batches.items():
        stacked = torch.stack([s["moments"][i] for s, i in members])
        if beta < 1:
            steps = torch.tensor([1 - beta ** s["step"] for s, _ in members], dtype=torch.float64)
            stacked /= steps.to(stacked).view(-1, 1, 1)
        roots = matrix_inverse_root(stacked, 2 * order, group["epsilon"], group["root"])
        for (s, i), root in zip(members, roots, strict=True):
            s["roots"][i].copy_(root)
