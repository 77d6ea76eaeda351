"""Crashes, interrupts and kills of worker processes: what is lost, what is left behind, what goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wellposed.workbench.errors import BadInput
from wellposed.workbench.outcome import Failure
from wellposed.workbench.pool import CannotSend, Event, Pool, run_jobs


def work(spec: dict) -> dict:
    """Does what the spec says; runs in a worker."""
    match spec["do"]:
        case "square":
            return {"value": spec["x"] ** 2, "pid": os.getpid()}
        case "threads":
            import torch

            return {"threads": torch.get_num_threads(), "variable": os.environ.get("OMP_NUM_THREADS")}
        case "raise":
            raise ValueError("the loss\nbecame NaN")
        case "exit":
            raise SystemExit(3)
        case "set":
            return {"value": {1, 2}}
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(spec)


def square(x: float) -> dict:
    return {"do": "square", "x": x}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(work, 2) as pool:
        yield pool


def test_results_are_those_of_one_process(pool: Pool) -> None:
    specs = [square(x) for x in range(12)]
    here = {i: r["value"] for i, r in run_jobs(work, specs, 1)}  # type: ignore[index]
    there = dict(pool.run(specs))
    assert {i: r["value"] for i, r in there.items()} == here  # type: ignore[index]
    assert os.getpid() not in {r["pid"] for r in there.values()}  # type: ignore[index]


def test_workers_have_one_thread_and_the_coordinator_keeps_its_environment(pool: Pool) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    ((_, found),) = pool.run([{"do": "threads"}])
    assert found == {"threads": 1, "variable": "1"}
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_raises_is_a_failure_and_the_others_go_on(pool: Pool, workers: int) -> None:
    specs = [{"do": "raise"}, square(3), {"do": "exit"}, {"do": "set"}, square(4)]
    found = dict(pool.run(specs) if workers == 2 else run_jobs(work, specs, 1))
    assert isinstance(found[0], Failure)
    assert found[0].reason == "ValueError: the loss became NaN"
    assert "Traceback" in found[0].details
    assert isinstance(found[2], Failure)
    assert found[2].reason == "SystemExit: 3"
    assert isinstance(found[3], Failure)
    assert "not JSON serializable" in found[3].reason
    assert found[1]["value"] == 9  # type: ignore[index]
    assert found[4]["value"] == 16  # type: ignore[index]


def test_a_worker_that_dies_is_that_jobs_failure_alone(pool: Pool) -> None:
    specs = [square(1), {"do": "die"}, *(square(x) for x in range(2, 8))]
    found = dict(pool.run(specs))
    assert sorted(found) == list(range(8))
    failed = {i: r for i, r in found.items() if isinstance(r, Failure)}
    assert list(failed) == [1]
    assert "worker process died" in failed[1].reason
    assert [i for i, _ in pool.run([square(5)])] == [0]  # the pool is usable afterwards


def test_longest_jobs_start_first_and_events_tell_all() -> None:
    events: list[Event] = []
    order = [i for i, _ in run_jobs(work, [square(x) for x in range(4)], 1, events.append, [1, 3, 2, 9])]
    assert order == [3, 1, 2, 0]
    assert [(e.kind, e.job) for e in events[:4]] == [("started", 3), ("finished", 3), ("started", 1), ("finished", 1)]
    events.clear()
    list(run_jobs(work, [{"do": "raise"}], 1, events.append))
    assert [e.kind for e in events] == ["started", "failed"]


@pytest.mark.parametrize("function", [lambda spec: spec, "nowhere.at:all", "json:nothing", "json", ":"])
def test_a_function_that_cannot_travel_is_refused_before_anything_starts(function: str | Callable) -> None:
    with pytest.raises(CannotSend) as caught:
        Pool(function, 2)
    assert isinstance(caught.value, BadInput)
    assert "\n" not in str(caught.value)


def test_bad_specs_and_worker_counts_are_refused() -> None:
    with pytest.raises(CannotSend, match="JSON values only"):
        list(run_jobs(work, [square(1), {"do": {1, 2}}], 1))
    with pytest.raises(BadInput, match="at least one worker"):
        Pool(work, 0)


def test_a_consumer_that_stops_ends_the_workers(pool: Pool) -> None:
    results = pool.run([square(x) for x in range(6)])
    _, first = next(results)
    results.close()  # type: ignore[attr-defined]
    assert gone([first["pid"]])  # type: ignore[index]


# -- the coordinator itself dies --

JOBS = """
import os, time
from pathlib import Path

def job(spec):
    Path(spec["folder"], f"pid-{os.getpid()}").touch()
    if spec["x"] > 1 and spec["wait"]:
        time.sleep(60)
    return {"x": spec["x"]}
"""
COORDINATOR = """
import sys
from pathlib import Path
from wellposed.workbench.pool import run_jobs
from wellposed.workbench.store import Run, Store

def main(folder, wait, workers):
    store = Store(Path(folder))
    runs = [Run("code", {"x": x}, "data", 0, {}) for x in range(4)]
    missing = [run for run in runs if store.get(run) is None]
    specs = [{"x": run.config["x"], "folder": folder, "wait": wait} for run in missing]
    for index, result in run_jobs("jobs_of_test_pool:job", specs, workers):
        store.put(missing[index], result)
        print(result["x"], flush=True)

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "wait", int(sys.argv[3]))
"""


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie that nobody has buried yet does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT])
def test_death_of_the_coordinator_leaves_no_orphan_and_loses_no_run(tmp_path: Path, death: signal.Signals) -> None:
    (tmp_path / "jobs_of_test_pool.py").write_text(JOBS)
    script = tmp_path / "coordinator.py"
    script.write_text(COORDINATOR)
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen([*command, "wait", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stdout is not None
    stored = {process.stdout.readline().strip() for _ in range(2)}
    assert stored == {"0", "1"}
    workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("pid-*")]
    assert workers
    if death == signal.SIGINT:
        os.killpg(process.pid, death)  # as a terminal does: to coordinator and workers alike
    else:
        process.kill()
    _, talk = process.communicate(timeout=20)
    assert process.returncode == -death
    assert gone(workers)
    assert talk.count("Traceback") == (death == signal.SIGINT)  # the coordinator's KeyboardInterrupt and no worker's
    records = [json.loads(path.read_text())["result"]["x"] for path in (tmp_path / "runs").glob("*.json")]
    assert sorted(records) == [0, 1]

    again = subprocess.run([*command, "finish", "1"], capture_output=True, text=True, check=True, timeout=60)
    assert sorted(again.stdout.split()) == ["2", "3"]
    assert again.stderr == ""
