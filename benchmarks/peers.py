"""Parts against other libraries that do the same, in turns within one process: ratios below 1 are faster than theirs.

Transport to the same error of the marginals against POT, optimizers against pytorch_optimizer, on a multilayer
perceptron. JSON goes to stdout, a table to stderr. That they agree in value is tested, in ``tests/peers``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import ot
import pytorch_optimizer
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import wellposed as wp
from passes import batch_for, mlp
from timing import machine, race
from wellposed.optimizers.adahessian import AdaHessian
from wellposed.optimizers.shampoo import Shampoo
from wellposed.parts.sinkhorn import sinkhorn

Pair = tuple[Callable[[], object], Callable[[], object]]
TOLERANCE = 1e-6  # of both marginals' L1 errors together


# ---- transport
def transport(rows: int, share: float, limit: int) -> Pair:
    """Entropic transport between normal points, epsilon a share of the median cost; POT gives up after ``limit``."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, 10, generator=g, dtype=torch.float64) for _ in range(2))
    cost = torch.cdist(x, y).square()
    epsilon, a, matrix = share * float(cost.median()), np.full(rows, 1 / rows), cost.numpy()
    stop = TOLERANCE / rows**0.5  # it looks at the L2 norm of one marginal's error: at most this by Cauchy-Schwarz

    def theirs() -> object:
        return ot.sinkhorn(a, a, matrix, epsilon, numItermax=limit, stopThr=stop, warn=False)

    return theirs, lambda: sinkhorn(cost, epsilon=epsilon, tol=TOLERANCE)


def error(plan: Any) -> float:
    """Of both marginals of a plan between equal weights."""
    n, m = plan.shape
    return float(abs(plan.sum(1) - 1 / n).sum() + abs(plan.sum(0) - 1 / m).sum())


# ---- optimizers
def trained(make: Callable[[list[Tensor]], Any], backward: Callable[[Any, Tensor], None]) -> Callable[[], object]:
    """A step of an optimizer on a net of its own."""
    torch.manual_seed(0)
    model, batch = mlp(), batch_for("mlp")
    optimizer = make(list(model.parameters()))

    def step() -> None:
        optimizer.zero_grad()
        backward(optimizer, F.cross_entropy(model(batch["x"]), batch["y"]))
        optimizer.step()

    return step


def plainly(optimizer: Any, loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def with_graph(optimizer: Any, loss: Tensor) -> None:
    loss.backward(create_graph=True)  # type: ignore[no-untyped-call]


def sam() -> Pair:
    torch.manual_seed(0)
    model, batch = mlp(), batch_for("mlp")
    theirs = pytorch_optimizer.SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=1e-3, fused=True)

    def step() -> None:
        F.cross_entropy(model(batch["x"]), batch["y"]).backward()
        theirs.first_step(zero_grad=True)
        F.cross_entropy(model(batch["x"]), batch["y"]).backward()
        theirs.second_step(zero_grad=True)

    torch.manual_seed(0)
    other: nn.Module = mlp()
    recipe = wp.Recipe(wp.SAM(rho=0.05)).attach(other, wp.Classify(10))
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-3, fused=True)
    return step, lambda: recipe.step(batch, optimizer)


def measure() -> list[dict[str, Any]]:
    """Every race, with what came out where it is not the same by construction; NumPy has as many threads as torch."""
    with threadpool_limits(torch.get_num_threads()):
        return _measure()


def _measure() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def add(name: str, pair: Pair, **settings: Any) -> dict[str, Any]:
        row = {"name": name, **race(*pair, **settings)}
        print(f"{name:44}{row['ratio']:8.3f} [{row['least']:.3f}, {row['most']:.3f}]", file=sys.stderr)
        rows.append(row)
        return row

    for words, share, limit in (("easy", 0.05, 10_000), ("hard", 0.005, 2000)):
        theirs, ours = transport(1000, share, limit)
        row = add(f"Sinkhorn, 1000 points, {words}: POT", (theirs, ours), rounds=7, steps=1, warm=1, seconds=30)
        found: Any = ours()
        row |= {"error": error(found.plan), "peer_error": error(theirs())}
    add("SAM: pytorch_optimizer", sam())
    hessian = "AdaHessian: pytorch_optimizer"
    other = trained(lambda p: pytorch_optimizer.AdaHessian(p, lr=1e-2), with_graph)
    add(hessian, (other, trained(lambda p: AdaHessian(p, lr=1e-2), lambda o, loss: o.backward(loss))))
    for every in (1, 10):
        peer = trained(
            lambda p, n=every: pytorch_optimizer.ScalableShampoo(  # type: ignore[misc]
                p, lr=1e-3, start_preconditioning_step=1, preconditioning_compute_steps=n
            ),
            plainly,
        )
        own = trained(lambda p, n=every: Shampoo(p, lr=1e-3, root_every=n), plainly)  # type: ignore[misc]
        add(f"Shampoo, roots every {every}: pytorch_optimizer", (peer, own), steps=10, rounds=5)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({"machine": machine(), "peers": measure()}, sys.stdout, indent=1)
    print()
