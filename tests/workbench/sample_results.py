"""A realistic results document made of random numbers, for the tests of what is printed and drawn.

The gains resemble the default scenario (digits, 40 % wrong labels); nothing here was trained.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

HOSTILE = "<script>alert('pwned')</script>"
T95 = {5: 2.776, 10: 2.262, 20: 2.093}  # two-sided 95 % quantiles of Student's t at n - 1 degrees of freedom

# id, name, family, true gain in points, sd of the paired difference, step time, memory, passes
TECHNIQUES = [
    ("elr", "ELR(strength=3.0, beta=0.7)", "objectives", 26.0, 4.0, 1.04, 1.02, 1.0),
    ("vat", "VAT(eps=1.0)", "smoothness", 23.5, 3.4, 2.71, 1.55, 3.0),
    ("sam", "SAM(rho=0.5)", "smoothness", 21.0, 3.2, 1.93, 1.08, 2.0),
    ("comp-sum-losses", "CompSum(q=0.7)", "objectives", 20.4, 3.0, 1.02, 1.0, 1.0),
    ("dropout", "Dropout(p=0.5)", "augmentation", 20.1, 3.1, 1.21, 1.04, 1.0),
    ("gaussian-noise", "GaussianNoise(sd=0.4)", "augmentation", 19.6, 2.6, 1.05, 1.01, 1.0),
    ("jacobian-regularization", "JacobianReg(strength=0.1)", "smoothness", 18.9, 2.9, 2.2, 1.4, 2.0),
    ("adamw-decoupled-weight-decay", "WeightDecay(strength=1.0)", "weights", 18.2, 2.8, 1.01, 1.0, 1.0),
    ("decoupled-mixup", "DecoupledMixUp(eta=0.1)", "augmentation", 14.9, 2.7, 1.35, 1.1, 1.0),
    ("amp-flatness", "AMP(radius=0.5)", "smoothness", 13.6, 2.4, 1.95, 1.08, 2.0),
    ("mixup", "MixUp(alpha=1.0)", "augmentation", 13.4, 2.6, 1.12, 1.02, 1.0),
    ("ema", "EMA(decay=0.999)", "optimizers", 9.6, 1.9, 1.06, 1.25, 1.0),
    ("weight-compander", "WeightCompander()", "weights", 8.0, 2.0, 1.3, 1.2, 1.0),
    ("squentropy", "Squentropy()", "objectives", 7.9, 1.9, 1.03, 1.0, 1.0),
    ("ps-kd", "PSKD(alpha=0.8)", "objectives", 7.7, 1.5, 1.05, 1.3, 1.0),
    ("finite-difference-gradient-reg", "FiniteDifferenceGR(eps=0.05)", "smoothness", 6.6, 1.7, 1.92, 1.05, 2.0),
    ("masksub", "MaskSub(p=0.5)", "objectives", 5.2, 2.2, 1.85, 1.3, 2.0),
    ("gor", "GOR(strength=0.01)", "weights", 3.3, 1.6, 1.25, 1.02, 1.0),
    ("label-smoothing", "LabelSmoothing(eps=0.2)", "objectives", 2.5, 1.6, 1.01, 1.0, 1.0),
    ("norm-loss", "NormLoss(strength=0.01)", "weights", 1.2, 1.6, 1.08, 1.0, 1.0),
    ("prosparse", "ProSparse(density=0.5)", "sparsity", 0.4, 1.9, 1.15, 1.1, 1.0),
    ("gradient-clipping-omega", "ClipGradient(max_norm=1.0)", "optimizers", 0.2, 1.1, 1.07, 1.0, 1.0),
    ("my-method", "<img src=x onerror=alert(1)>", "yours", 0.1, 0.9, 1.0, 1.0, 1.0),
    ("poly-loss", "PolyLoss(eps=-1.0)", "objectives", -2.5, 1.0, 1.01, 1.0, 1.0),
    ("confidence-penalty", "ConfidencePenalty(strength=0.5)", "objectives", -2.1, 1.3, 1.02, 1.0, 1.0),
]


def interval(gains: np.ndarray) -> tuple[float, float, float, float]:
    mean, sd = float(gains.mean()), float(gains.std(ddof=1))
    half = T95[len(gains)] * sd / math.sqrt(len(gains))
    return mean, sd, mean - half, mean + half


def curve(start: float, peak: float, end: float, at: float, epochs: int) -> list[float]:
    """Rises from `start` to `peak` at epoch `at`, then drifts to `end`."""
    epoch = np.arange(1, epochs + 1)
    rise = start + (peak - start) * (1 - np.exp(-3.0 * epoch / at))
    drift = (end - peak) * np.clip((epoch - at) / (epochs - at), 0, 1)
    return [round(float(v), 3) for v in rise + drift]


def measured(value: float, gain: float, spread: float) -> dict[str, Any]:
    return {"value": value, "gain": gain, "interval": [gain - spread, gain + spread]}


def row(index: int, base: float, seeds: int, epochs: int, rng: np.random.Generator) -> dict[str, Any]:
    id, name, family, effect, spread, time, memory, passes = TECHNIQUES[index % len(TECHNIQUES)]
    repeat = index // len(TECHNIQUES)
    gains = rng.normal(effect, spread, seeds) - repeat
    gain, sd, low, high = interval(gains)
    verdict = "better" if low > 0.6 else "worse" if high < 0 else "undecided"
    label = name if name.startswith("<") else name.partition("(")[0]
    value = base + gain
    field = name.partition("(")[2].partition("=")[0]
    return {
        "id": id + f"-{repeat}" * bool(repeat),
        "name": name,
        "label": label + f" {repeat}" * bool(repeat),
        "family": family,
        "paper": {"id": id, "title": f"On {label} and what it regularises", "arxiv": "2010.01412", "year": 2020},
        "value": value,
        "gain": gain,
        "interval": [low, high],
        "interval_new_data": [low - (high - low) / 2, high + (high - low) / 2],
        "sd": sd,
        "p": 0.001 if low > 0.6 else 0.31,
        "verdict": verdict,
        "why": "about 34 paired seeds would decide" if verdict == "undecided" else "",
        "wins": int((gains > 0).sum()),
        "seeds": seeds,
        "gains": [float(g) for g in gains],
        "tie_group": False,
        "needed_seeds": 34 if verdict == "undecided" else None,
        "round": "all",
        "beyond_early_stopping": {"gain": gain - 18.5, "interval": [low - 18.5, high - 18.5], "p": 0.02},
        "cost": {"time": time, "memory": memory, "passes": passes, "flops": passes},
        "last": measured(value, gain, high - gain),
        "selected": {**measured(value + 0.4, gain + 0.4, high - gain), "epoch": 34.2},
        "metrics": {
            "accuracy": measured(value, gain, high - gain),
            "nll": measured(1.4 - gain / 35, gain / 35, 0.06),
            "ece": measured(12 + gain / 2, -gain / 2, 2.0),
            "noise_accuracy": measured(48 + 1.1 * gain, 1.1 * gain, 2.2),
            "fitted_wrong": measured(74 - 2.3 * gain, 2.3 * gain, 3.1),
        },
        "tuned": {
            "field": field,
            "value": 0.5,
            "candidates": [{"value": v, "score": 60 + 10 * v} for v in (0.05, 0.2, 0.5)],
        }
        if field and index % 2 == 0
        else None,
        "curves": {
            "epoch": list(range(1, epochs + 1)),
            "train": curve(18, min(62 + gain / 4, 99), 92 - 1.1 * max(gain, -5), 20, epochs),
            "validation": curve(15, 52 + gain / 12, 42 + gain / 2.2, 14, epochs),
            "test_last": value,
        },
        "recipe": f"Recipe({name})" if not name.startswith("<") else "Recipe()",
        "card": {
            "summary": f"{label} keeps the network from fitting what is not there.",
            "computes": "A penalty on how far the output moves when the input does.",
            "helps": "Wrong labels; few rows; inputs that will be noisy later.",
            "not": "Clean and plentiful data, where it only costs time.",
            "defaults": "As in the paper; three strengths are tried on validation data.",
            "cost": f"{passes:g} passes per step.",
            "reference": "Author and Author, A paper, 2020, arXiv 2010.01412",
        },
    }


def absent(id: str, label: str, verdict: str, why: str) -> dict[str, Any]:
    """A row that has no numbers."""
    nothing = dict.fromkeys(
        (
            "paper",
            "value",
            "gain",
            "interval",
            "sd",
            "p",
            "needed_seeds",
            "beyond_early_stopping",
            "cost",
            "last",
            "selected",
            "tuned",
            "curves",
        )
    )
    return {**nothing, "id": id, "name": label, "label": label, "family": "objectives", "verdict": verdict, "why": why,
            "wins": 0, "seeds": 0, "gains": [], "tie_group": False, "round": "", "metrics": {}, "recipe": "Recipe()",
            "card": {}}  # fmt: skip


def sample(techniques: int = len(TECHNIQUES), seeds: int = 10, epochs: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    base = 66.7
    rows = [row(i, base, seeds, epochs, rng) for i in range(techniques)]
    for tied in rows[:2]:
        tied["tie_group"] = True
    for tied in rows[1:2]:
        tied |= {"verdict": "tied", "why": "cannot be told apart from ELR"}

    stop = row(5, base, seeds, epochs, rng)
    stop |= {"id": "early-stopping", "name": "early stopping", "label": "early stopping", "family": "theory"}
    stop |= {"verdict": "reference", "paper": None, "tuned": None, "beyond_early_stopping": None, "recipe": "Recipe()"}
    stop["cost"] = {"time": 1.0, "memory": 1.0, "passes": 1.0, "flops": 1.0}
    stop["selected"]["epoch"] = 14.3

    dropped = row(17, base, 4 if seeds < 5 else 5, epochs, rng)
    dropped |= {"id": "nested-dropout", "name": "NestedDropout()", "label": "NestedDropout", "verdict": "dropped",
                "round": "race 1", "p": None, "why": "among the lower half after 2 seeds"}  # fmt: skip
    rows += [
        stop,
        dropped,
        absent("broken", HOSTILE, "failed", "the loss became NaN in step 41, term <b>penalty</b> of seed 3"),
        absent("upgrad", "UPGrad", "not applicable", 'needs two losses; the task gives one ("loss")'),
    ]
    winner = rows[0]
    return {
        "schema": 1,
        "command": "wellposed compare --data digits --label-noise 0.4 --out results",
        "environment": {
            "wellposed": "0.1.0",
            "python": "3.11.2",
            "torch": "2.13.0",
            "numpy": "2.3.4",
            "platform": "Linux-6.1-x86_64",
            "threads": 1,
            "device": "cpu",
            "jobs": 2,
        },
        "started": "2026-11-20T12:00:00+00:00",
        "seconds": 101.7,
        "data": {
            "name": "digits",
            "task": "classification",
            "train": 480,
            "validation": 120,
            "test": 597,
            "features": 64,
            "classes": 10,
            "label_noise": 0.4,
            "corrupt": None,
            "fingerprint": "3f1c9a77d2",
            "dropped_rows": 0,
            "description": "8 x 8 scans of handwritten digits",
        },
        "model": {"name": "MLP 64-128-128-10", "parameters": 26122},
        "metric": {"name": "accuracy", "direction": "max", "unit": "points"},
        "plan": {
            "protocol": "all",
            "rows": [r["id"] for r in rows],
            "runs": 290,
            "seeds": list(range(seeds)),
            "confirm_seeds": [],
            "minutes": 1.8,
            "budget_minutes": 2.0,
            "epochs": epochs,
            "steps": 900,
            "worth": None,
            "not_applicable": [{"id": "upgrad", "why": 'needs two losses; the task gives one ("loss")'}],
            "setting": {"data": "digits", "model": None, "lr": 2e-3, "batch_size": 32},
            "tuning": {"seeds": [100, 101], "runs": 60},
        },
        "population": "The intervals speak of new data of this kind: another split, other wrong labels, other weights.",
        "baseline": {
            "value": base,
            "sd": 4.8,
            "last": base,
            "selected": base + 18.5,
            "metrics": {"accuracy": base, "nll": 1.4, "ece": 12.0, "noise_accuracy": 48.0, "fitted_wrong": 74.0},
            "curves": {
                "epoch": list(range(1, epochs + 1)),
                "train": curve(18, 60, 93, 20, epochs),
                "validation": curve(15, 52, 41, 14, epochs),
                "test_last": base,
            },
        },
        "rows": rows,
        "winner": {
            "id": winner["id"],
            "recipe_toml": 'wellposed = 1\n\n[[method]]\nname = "ELR"\nstrength = 3.0\nbeta = 0.7\n',
            "snippet": "import wellposed as wp\n",
        },
        "headline": f"ELR is the best of {techniques} techniques here: {winner['gain']:+.1f} points of accuracy "
        "over the plain baseline, and it goes beyond early stopping.",
        "warnings": ["10 rows of the test part are exact copies of training rows"],
    }
