"""Two steps timed against each other on a machine that does other things as well, and the facts of that machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Stepper = Callable[[], object]


def race(
    plain: Stepper, other: Stepper, rounds: int = 15, steps: int = 8, warm: int = 5, seconds: float = 3.0
) -> dict[str, float]:
    """Time of ``other`` over that of ``plain``.

    The two take turns, step by step and with the first turn changing hands, so that whatever else the machine does
    meets both. A round gives the ratio of its medians; the answer is the median of the rounds, with least and most.
    After ``seconds``, slow steps have had enough with three rounds. ``quiet`` is the ratio of the 10 % quantiles over
    all steps: what a machine that did nothing else would show.
    """
    for _ in range(warm):
        plain()
        other()
    times: list[tuple[float, float]] = []
    every: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times) < rounds and (len(times) < 3 or time.perf_counter() < end):
        pair: tuple[list[float], list[float]] = ([], [])
        for i in range(steps):
            for which in (0, 1) if i % 2 else (1, 0):
                begin = time.perf_counter()
                (plain, other)[which]()
                pair[which].append(time.perf_counter() - begin)
        times.append((statistics.median(pair[0]), statistics.median(pair[1])))
        every[0].extend(pair[0])
        every[1].extend(pair[1])
    ratios = sorted(b / a for a, b in times)
    a, b = (statistics.quantiles(seen, n=10)[0] for seen in every)
    return {
        "quiet": round(b / a, 4), "plain_us": round(a * 1e6, 1), "other_us": round(b * 1e6, 1),
        "ratio": round(statistics.median(ratios), 4), "least": round(ratios[0], 4), "most": round(ratios[-1], 4),
        "rounds": len(times),
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    return {
        "processor": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
