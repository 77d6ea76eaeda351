"""Cost of every registered technique: time of its step over the plain step, beside its theoretical passes.

On a multilayer perceptron 64-256-256-10 and on a small convolutional net, batch 128; then a few of them against
hand-written loops that do the same. JSON goes to stdout, a table to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from timing import machine, race
from wellposed.core.registry import catalogue

BATCH, CLASSES, SAMPLES = 128, 10, 1024


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2),
        nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(288, CLASSES),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {"mlp": (mlp, (64,)), "conv": (conv, (1, 8, 8))}


def batch_for(kind: str) -> dict[str, Tensor]:
    y = torch.arange(BATCH) % CLASSES
    return {"x": torch.randn(BATCH, *MODELS[kind][1]), "y": y, "index": torch.randperm(SAMPLES)[:BATCH]}


def composed(kind: str, *methods: wp.Method) -> Callable[[], object]:
    """The step of a recipe, on a model, optimizer and batch of its own."""
    torch.manual_seed(0)
    model, batch = MODELS[kind][0](), batch_for(kind)
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(CLASSES), steps=10**6, example=batch)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return lambda: recipe.step(batch, optimizer)


def method_for(name: str) -> wp.Method:
    cls = catalogue()[name]
    settings = {k: v for k, v in cls.example.items() if k != "model"}
    return cls(**settings | {k: v for k, v in {"rows": SAMPLES, "classes": CLASSES}.items() if k in settings})


def measure() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    plain = {kind: composed(kind) for kind in MODELS}
    print(f"{'technique':26}{'passes':>7}" + "".join(f"{k:>8} [least, most]   " for k in MODELS), file=sys.stderr)
    for name, cls in catalogue().items():
        if not cls.__module__.startswith("wellposed."):
            continue
        row: dict[str, Any] = {"name": name, "passes": round(method_for(name).passes(), 3)}
        for kind in MODELS:
            try:
                step = composed(kind, method_for(name))
                step()
            except Exception as error:  # a technique for another kind of model says so; the reason is the result
                row[kind] = {"skipped": str(error).splitlines()[0]}
            else:
                row[kind] = race(plain[kind], step)
        rows.append(row)
        print(f"{name:26}{row['passes']:7.2f}" + "".join(cell(row[kind]) for kind in MODELS), file=sys.stderr)
    return rows


def cell(found: dict[str, Any]) -> str:
    if "skipped" in found:
        return f"{'-':>8}{'':16}"
    return f"{found['ratio']:8.2f} [{found['least']:.2f}, {found['most']:.2f}]".ljust(24)


# ---- the same by hand
def sam_by_hand(rho: float = 0.05) -> Callable[[], float]:
    """The two-pass loop of every SAM tutorial, with the list operations a careful user would take."""
    torch.manual_seed(0)
    model, batch = mlp(), batch_for("mlp")
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        with torch.no_grad():
            grads = [p.grad for p in params if p.grad is not None]
            scale = rho / (torch.stack(torch._foreach_norm(grads)).norm() + 1e-12)
            kept = [p.clone() for p in params]
            torch._foreach_add_(params, torch._foreach_mul(grads, scale))
        optimizer.zero_grad()
        F.cross_entropy(model(batch["x"]), batch["y"]).backward()
        with torch.no_grad():
            torch._foreach_copy_(params, kept)
        optimizer.step()
        return loss.item()

    return step


def penalty_by_hand(size: Callable[[Tensor], Tensor], strength: float) -> Callable[[], float]:
    """A sum over parameters in Python, as loops on the web do."""
    torch.manual_seed(0)
    model, batch = mlp(), batch_for("mlp")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        for p in model.parameters():
            if p.ndim > 1:
                loss = loss + strength * size(p)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def by_hand() -> list[dict[str, Any]]:
    loops: dict[str, Callable[[], float]] = {
        "SAM": sam_by_hand(),
        "L1": penalty_by_hand(lambda p: p.abs().sum(), 1e-4),
        "L2": penalty_by_hand(lambda p: p.square().sum() / 2, 1e-4),
    }
    rows = []
    for name, loop in loops.items():
        row = {"name": name, **race(loop, composed("mlp", method_for(name)), rounds=25, steps=16)}
        rows.append(row)
        print(
            f"{name} against a hand-written loop: {row['ratio']:.3f} [{row['least']:.3f}, {row['most']:.3f}]",
            file=sys.stderr,
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({"machine": machine(), "passes": measure(), "by_hand": by_hand()}, sys.stdout, indent=1)
    print()
