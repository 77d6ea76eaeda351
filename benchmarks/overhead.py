"""Cost of the engine: a composed empty recipe against a hand-written loop, interleaved in one run.

Prints the ratio of medians over rounds, and the smallest and largest ratio of a round.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import wellposed as wp

ROUNDS, STEPS = 41, 60


def net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def hand(width: int, batch: dict[str, torch.Tensor]) -> Callable[[], float]:
    model = net(width)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def composed(width: int, batch: dict[str, torch.Tensor], *methods: wp.Method) -> Callable[[], object]:
    model = net(width)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(10))
    return lambda: recipe.step(batch, optimizer)


def race(first: Callable[[], object], second: Callable[[], object]) -> dict[str, float]:
    """Time both in alternating order; ratios of second to first."""
    times: list[tuple[float, float]] = []
    for i in range(ROUNDS):
        pair = [0.0, 0.0]
        for which in (0, 1) if i % 2 else (1, 0):
            begin = time.perf_counter()
            for _ in range(STEPS):
                (first, second)[which]()
            pair[which] = (time.perf_counter() - begin) / STEPS
        times.append((pair[0], pair[1]))
    ratios = sorted(b / a for a, b in times[3:])
    a, b = min(t[0] for t in times), min(t[1] for t in times)
    return {
        "ratio": round(statistics.median(ratios), 4), "least": round(ratios[0], 4), "most": round(ratios[-1], 4),
        "ratio_of_best": round(b / a, 4), "hand_us": round(a * 1e6, 1), "ours_us": round(b * 1e6, 1),
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for width, size in ((64, 32), (128, 32), (128, 128), (256, 128)):
        batch = {"x": torch.randn(size, 64), "y": torch.randint(0, 10, (size,))}
        rows.append({"width": width, "batch": size, **race(hand(width, batch), composed(width, batch))})
        print(json.dumps(rows[-1]), file=sys.stderr)
    json.dump({"overhead": rows}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
