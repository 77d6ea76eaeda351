"""Cost of the engine: a composed empty recipe against a hand-written loop on multilayer perceptrons.

JSON goes to stdout, a line per size to stderr.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from timing import machine, race

SIZES = ((64, 32), (128, 32), (128, 128), (256, 128))  # width, batch
BUILDS = 7  # where the weights happen to lie in memory moves a step by a few percent, so each race is run anew


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def hand(width: int, batch: dict[str, Tensor]) -> Callable[[], float]:
    model = net(width)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def composed(width: int, batch: dict[str, Tensor]) -> Callable[[], object]:
    model = net(width)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    recipe = wp.Recipe().attach(model, wp.Classify(10))
    return lambda: recipe.step(batch, optimizer)


def measure() -> list[dict[str, float]]:
    torch.manual_seed(0)
    rows = []
    for width, size in SIZES:
        batch = {"x": torch.randn(size, 64), "y": torch.randint(0, 10, (size,))}
        races = [race(hand(width, batch), composed(width, batch), rounds=7, steps=30, warm=30) for _ in range(BUILDS)]
        row: dict[str, float] = {"width": width, "batch": size, "builds": BUILDS}
        row |= {k: round(statistics.median(r[k] for r in races), 4) for k in ("ratio", "quiet", "plain_us", "other_us")}
        row |= {"least": min(r["least"] for r in races), "most": max(r["most"] for r in races)}
        rows.append(row)
        print(
            f"engine, MLP 64-{width}-{width}-10, batch {size:3d}: {row['ratio']:.3f} of a hand-written loop "
            f"[{row['least']:.3f}, {row['most']:.3f}], undisturbed {row['quiet']:.3f} "
            f"({row['other_us'] - row['plain_us']:+.0f} us of {row['plain_us']:.0f})",
            file=sys.stderr,
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({"machine": machine(), "overhead": measure()}, sys.stdout, indent=1)
    print()
