"""All benchmarks: what the engine costs, and what each technique costs beside its theoretical passes.

Writes ``benchmarks/results.json``, with the facts of the machine; the tables go to stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import overhead
import passes
import peers
from timing import machine

if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {
        "machine": machine(),
        "overhead": overhead.measure(),
        "passes": passes.measure(),
        "by_hand": passes.by_hand(),
        "peers": peers.measure(),
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", file=sys.stderr)
