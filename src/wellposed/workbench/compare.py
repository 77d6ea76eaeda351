"""The main job: plan, train every row on the same seeds, judge, and write down what was found."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from .. import __version__
from ..core import RecipeError
from . import cost, document, metrics, protocol, rows, trial
from .data.importing import resolve
from .errors import BadInput
from .outcome import Failure
from .plan import BASELINE, Job, Plan, Row, make_plan
from .pool import Pool
from .progress import Progress
from .store import Run, Store, StoreError, code_hash
from .worker import encode_all, execute, job

if TYPE_CHECKING:
    from rich.console import Console

BUDGET = "2m"
TUNING_SEEDS = 1
DIGITS = {"train_size": 600, "label_noise": 0.4}
"""The default scenario: 600 scans, 40 % of the labels wrong (see docs/compare.md)."""
CONTENTION = 1.25
"""How much slower a run gets when every core has one."""
FEWEST = 12
"""Techniques that stay in the default comparison however small the budget is."""
DEAR = 4.0
"""Times a plain step from which a technique stays out of the default comparison if the others can be tuned for it."""
START = 5.0
"""Seconds until the worker processes are up."""


@dataclass(frozen=True)
class Request:
    """The options of ``wellposed compare``; None stands for the default that fits the data."""

    data: str = "digits"
    target: str | None = None
    task: str | None = None
    model: str | None = None
    methods: str | None = None
    label_noise: float | None = None
    train_size: int | None = None
    corrupt: str | None = None
    seeds: int | None = None
    budget: str | None = None
    metric: str | None = None
    worth: float | None = None
    tune: bool = True
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    jobs: int | None = None
    out: Path | None = None
    command: str = "wellposed compare"


def compare(request: Request, console: Console) -> tuple[dict[str, Any], Path]:
    """Run a comparison; finished runs of an interrupted one are taken up.

    Args:
        request: the options.
        console: for people; results go to files and to the caller.

    Returns:
        the results document (see ``wellposed.workbench.schema``), and the folder of its files.

    Raises:
        BadInput: for options, data or models that cannot work.
    """
    started, begin = datetime.now(UTC), time.perf_counter()
    torch.set_num_threads(1)  # small models: processes pay, threads do not
    setting = settle(request)
    wanted = rows.parse(request.methods or "default", request.tune)
    jobs = request.jobs if request.jobs is not None else min(len(os.sched_getaffinity(0)), 8)
    if jobs < 1:
        raise BadInput(f"--jobs must be at least 1, got {jobs}")
    if request.seeds is not None and request.seeds < 1:
        raise BadInput(f"--seeds must be at least 1, got {request.seeds}")
    budget = seconds_of(request.budget or BUDGET) if request.seeds is None or request.budget else None
    folder = request.out or default_folder(request, setting)

    data, split = setting.load(), setting.split(0)
    steps = setting.epochs * trial.batches_per_epoch(len(split.x_train), setting.batch_size)
    code, versions = code_hash(Path(__file__).parents[1]), versions_of()
    own = {spec: source_hash(spec) for spec in (setting.data, setting.model) if spec and is_factory(spec)}
    asked = {"methods": request.methods, "tune": request.tune, "seeds": request.seeds, "budget": budget}
    frozen = Run(code, {"plan": asked, "setting": asdict(setting), "own": own}, data.fingerprint, 0, versions)
    known = Store(folder).get(frozen) if (folder / "runs").is_dir() else None
    if known is None:
        with console.status("dry run: a few steps of every row"):
            costs, reasons = dry_runs(setting, wanted)
        spent = time.perf_counter() - begin + START
        left = None if budget is None else max(1.0, budget - spent)
        known = {"costs": costs, "reasons": reasons, "left": left, "jobs": jobs}
    costs, reasons, left = known["costs"], known["reasons"], known["left"]
    planned = partial(plan_of, request, setting, wanted, costs, steps=steps, budget=left, jobs=known["jobs"])
    plan = planned(reasons) if request.methods else fitted(planned, costs, reasons)
    store = Store(folder)  # from here on files are written
    store.put(frozen, known)  # a plan rests on measured times: taken up again it must be the same
    of = 0 if request.methods else len(rows.parse("all", request.tune))
    announce(console, plan, data, split, setting, folder, of)

    table = {row.id: row for row in (rows.baseline(), *wanted)}

    def spec_of(j: Job) -> dict[str, Any]:
        row, chosen = table[j.row], dict(plan.setting(j))
        training = {**encode_all(row.settings), **encode_all(chosen)}
        config = {"setting": asdict(setting), "method": row.method, "settings": training, "own": own}
        run = Run(code, config, data.fingerprint, j.seed, versions)
        return job(setting, row, j.seed, chosen, run, folder)

    progress = Progress(console, plan)
    pool = Pool(execute, jobs)

    def evaluate(wanted_jobs: list[Job]) -> Iterator[tuple[Job, Any]]:
        specs = [spec_of(j) for j in wanted_jobs]
        prices = [plan.costs[j.row] for j in wanted_jobs]
        for i, found in pool.run(specs, costs=prices, on_event=lambda e: progress.event(e, wanted_jobs[e.job])):
            if isinstance(found, Failure):
                if found.reason.startswith(StoreError.__name__):  # a full disk is not the technique's fault
                    raise StoreError(found.reason.partition(": ")[2])
                yield wanted_jobs[i], found
            else:
                yield wanted_jobs[i], scores_of(found, setting.metric)

    try:
        with pool, progress:
            outcome = protocol.run_protocol(plan, evaluate, on_phase=progress.phase)
    except KeyboardInterrupt:
        console.print(f"interrupted; the finished runs are kept, and this goes on with them: {request.command}")
        raise

    result = document.build(
        request.command, setting, plan, outcome, table, costs,
        environment={**versions, "platform": platform.platform(), "threads": 1, "device": "cpu", "jobs": jobs},
        started=started.isoformat(timespec="seconds"), seconds=time.perf_counter() - begin,
        steps=steps, budget=budget,
        warnings=[*data.warnings, *store.quarantined, *outcome.warnings, *([plan.note] if plan.note else [])],
    )  # fmt: skip
    document.write(result, folder)
    return result, folder


def settle(request: Request) -> trial.Setting:
    """The request with every default filled in; checks what can be checked before anything runs."""
    data = trial.Setting(data=request.data, target=request.target, task=request.task).load()
    fixed = DIGITS if data.name == "digits" else {"train_size": None, "label_noise": 0.0}
    metric = request.metric or next(iter(metrics.METRICS[data.task]))
    if metric not in metrics.METRICS[data.task]:
        known = ", ".join(metrics.METRICS[data.task])
        raise BadInput(f"unknown metric '{metric}' for {data.task}: choose {known}")
    for name in ("epochs", "batch_size", "lr", "train_size"):
        value = getattr(request, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise BadInput(f"--{name.replace('_', '-')} must be positive, got {value}")
    setting = trial.Setting(
        data=request.data,
        target=request.target,
        task=request.task,
        model=request.model,
        train_size=request.train_size or fixed["train_size"],  # type: ignore[arg-type]
        label_noise=fixed["label_noise"] if request.label_noise is None else request.label_noise,  # type: ignore[arg-type]
        corrupt=request.corrupt,
        metric=metric,
    )
    n = len(setting.split(0).x_train)
    batch = request.batch_size or (16 if data.task == "language" else 32 if n < 2000 else 64 if n < 10_000 else 128)
    epochs = request.epochs or max(
        3, min(60, round((1200 if n < 10_000 else 2400) / trial.batches_per_epoch(n, batch)))
    )
    return replace(setting, batch_size=min(batch, n), epochs=epochs, lr=request.lr or 2e-3)


def dry_runs(setting: trial.Setting, wanted: list[rows.Row]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Costs of the rows that run here, and reasons of those that do not."""
    plain = cost.Plain(setting)
    costs = {BASELINE: cost.dry_run(setting, rows.baseline(), plain) | {"time": 1.0}}
    reasons: dict[str, str] = {}
    task = trial.task_of(setting.load())
    for row in wanted:
        why = rows.not_applicable(row, task, setting.facts())
        if why is None:
            try:
                costs[row.id] = cost.dry_run(setting, row, plain)
            except (RecipeError, ValueError, TypeError, NotImplementedError) as error:
                why = str(error).partition("\n")[0]
            except Exception:  # a fault, not a misfit: let the runs themselves report it as a failure
                costs[row.id] = {**costs[BASELINE], "recipe": row.method}
        if why is not None:
            reasons[row.id] = why
    return costs, reasons


def plan_of(
    request: Request,
    setting: trial.Setting,
    wanted: list[rows.Row],
    costs: dict[str, dict[str, Any]],
    reasons: dict[str, str],
    *,
    steps: int,
    budget: float | None,
    jobs: int,
) -> Plan:
    """The plan for these rows, costs and limits."""

    def candidates(row: rows.Row) -> tuple[dict[str, Any], ...]:
        return tuple({row.knob: value} for value in row.candidates) if row.knob and request.tune else ({},)

    slowdown = CONTENTION if jobs > 1 else 1.0
    seconds = {id: slowdown * c["seconds"] * steps + 0.05 for id, c in costs.items()}
    return make_plan(
        [Row(r.id, candidates(r), reasons.get(r.id, "")) for r in wanted],
        seconds,
        budget_seconds=budget,
        jobs=jobs,
        seeds=request.seeds,
        tuning_seeds=TUNING_SEEDS,
        direction=metrics.METRICS[setting.load().task][setting.metric],  # type: ignore[arg-type]
        worth=request.worth,
    )


def fitted(
    planned: Callable[[dict[str, str]], Plan], costs: dict[str, dict[str, Any]], reasons: dict[str, str]
) -> Plan:
    """The plan of what the budget holds: where even the quickest race needs longer, the dearest techniques stay out."""
    plan, out = planned(reasons), dict(reasons)
    while len(plan.rows) > FEWEST:
        dearest = max(plan.rows, key=lambda row: costs[row.id]["time"]).id
        times = costs[dearest]["time"]
        if not (plan.over_budget or (plan.tune_after and times > DEAR)):
            break
        out[dearest] = f"a step takes {times:.1f} times a plain one, too long for the budget; --methods all takes it in"
        plan = planned(out)
    return plan


def scores_of(found: dict[str, Any], metric: str) -> dict[str, Any]:
    """A stored result as the protocol reads it: test values judge, the last validation value chooses."""
    return {
        "last": found["last"][metric],
        "selected": found["selected"][metric],
        "validation": found["last_validation"],
        "error": found["validation_error"],
        "found": found,
    }


def announce(
    console: Console, plan: Plan, data: Any, split: Any, setting: trial.Setting, folder: Path, chosen: int
) -> None:
    """Say what will be done before anything is spent."""
    noise = f", {100 * setting.label_noise:.0f} % wrong labels" if setting.label_noise else ""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(f"data   {data.description}")
    say(
        f"       train {len(split.x_train)}{noise}, validation {len(split.x_val)}, test {len(split.x_test)}; "
        f"{setting.epochs} epochs, batch {setting.batch_size}"
    )
    say(f"plan   {plan.summary()}")
    if chosen:
        say(f"       of {chosen} techniques those against overfitting, wrong or few labels; --methods all takes all")
    for row in plan.not_applicable:
        say(f"       not applicable: {row.id}: {row.why_not}", style="dim")
    for note in (*data.warnings, *([plan.note] if plan.note else [])):
        say(f"note   {note}", style="yellow")
    say(f"runs   {folder}")


def seconds_of(text: str, option: str = "--budget") -> float:
    """``90``, ``90s``, ``2m``, ``1.5h`` in seconds; ``option`` is what the user gave it to.

    Raises:
        BadInput: for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise BadInput(f"{option} takes a positive time such as 90s, 2m or 1h, got '{text}'")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def default_folder(request: Request, setting: trial.Setting) -> Path:
    """The same request always gets the same folder, so that repeating it resumes it."""
    facts = {k: v for k, v in asdict(request).items() if k not in {"out", "jobs", "command"}}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:6]
    home = Path(os.environ.get("WELLPOSED_HOME", ".wellposed"))
    stem = re.sub(r"[^\w-]+", "-", Path(setting.data).stem if "/" in setting.data else setting.data).strip("-")
    return home / f"compare-{stem}-{digest}"


def versions_of() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "wellposed": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }


def is_factory(spec: str) -> bool:
    """Whether ``spec`` names a function of the user's."""
    return re.fullmatch(r"[\w.]+:[\w.]+", spec) is not None


def source_hash(spec: str) -> str:
    """Hash of the file that holds a user's function, so that editing it makes its runs new."""
    import inspect

    found: Callable[..., Any] = resolve(spec, "function")
    try:
        return hashlib.sha256(Path(inspect.getfile(found)).read_bytes()).hexdigest()
    except (TypeError, OSError):
        return ""
