"""Worker processes: what crashes, hangs or is killed costs one claim and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wellposed.papers import reproduce
from wellposed.papers.claim import Claim
from wellposed.papers.mutation import Mutation, fixed
from wellposed.papers.workers import work_through
from wellposed.smoothness.sam import SAM
from wellposed.workbench.outcome import Failure


def work(spec: dict[str, Any]) -> dict[str, Any]:
    """Does what the spec says; runs in a worker."""
    match spec["do"]:
        case "square":
            return {"value": spec["x"] ** 2}
        case "raise":
            raise ValueError("the loss\nbecame NaN")
        case "leave":
            raise SystemExit(3)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)
    raise AssertionError(spec)


def test_every_end_of_a_claim_is_its_own_result() -> None:
    specs: list[dict[str, Any]] = [
        {"do": "hang"}, {"do": "raise"}, {"do": "leave"}, {"do": "square", "x": 3}, {"do": "die"},
        {"do": "square", "x": 4},
    ]  # fmt: skip
    started: list[int] = []
    found = dict(work_through(work, specs, jobs=2, timeout=2.0, on_start=started.append))
    assert started == list(range(6))
    assert (found[3], found[5]) == ({"value": 9}, {"value": 16})
    reasons = {i: answer.reason for i, answer in found.items() if isinstance(answer, Failure)}
    assert reasons == {
        0: "stopped after 2s: it takes longer than a claim may",
        1: "ValueError: the loss became NaN",
        2: "SystemExit: 3",
        4: "the worker process died (signal SIGKILL)",
    }


def unpicklable(spec: dict[str, Any]) -> dict[str, Any]:
    raise AssertionError


def test_a_worker_that_cannot_start_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpicklable, "__module__", "test_workers")
    monkeypatch.setattr("sys.path", [p for p in sys.path if not p.endswith("papers")])
    with pytest.raises(RuntimeError, match="no worker process could be started"):
        list(work_through(unpicklable, [{}], jobs=1, timeout=60.0))


# ---- a coordinator that is killed
def slow(spec: dict[str, Any]) -> dict[str, Any]:
    """A claim of two that ends at once, and one that does not; runs in a worker."""
    if spec["id"] == "sam":
        Path("hanging").write_text(str(os.getpid()))
        time.sleep(600)
    return quick(spec)


def quick(spec: dict[str, Any]) -> dict[str, Any]:
    """A record of a claim that passes: SAM's radius is far above 0."""
    declared = Claim(
        paper=spec["id"], statement="It helps.", arena="none", quantity="accuracy", margin=1.0,
        run=lambda seed: {"with": {"accuracy": SAM(rho=10.0).rho}, "without": {"accuracy": 0.0}},
        mutation=Mutation(words="radius 0", target="wellposed.smoothness.sam:SAM", by=fixed(rho=0.0)),
    )  # fmt: skip
    return reproduce.run_claim(declared, spec["seeds"])


def coordinator() -> None:
    """What is killed."""
    reproduce.reproduce(["elr", "sam"], jobs=1, folder=Path("evidence"), work=slow, within=1e6)


def test_kill_9_loses_no_finished_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evidence").mkdir()
    code = "if __name__ == '__main__':\n import test_workers\n test_workers.coordinator()"
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", code], env=here) as process:
        until = time.monotonic() + 60
        while not Path("hanging").exists() or not Path("hanging").read_text():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.kill()
    worker, until = int(Path("hanging").read_text()), time.monotonic() + 10
    while alive(worker):
        assert time.monotonic() < until, "the worker has outlived its coordinator"
        time.sleep(0.05)
    assert [p.name for p in Path("evidence").iterdir()] == ["elr.json"]
    told: list[str] = []
    results = reproduce.reproduce(
        ["elr", "sam"], jobs=1, folder=Path("evidence"), work=quick,
        watch=reproduce.Watch(begin=told.extend),
    )  # fmt: skip
    assert told == ["sam"]
    assert [(r.id, r.verdict, r.before) for r in results] == [("elr", "PASS", None), ("sam", "PASS", None)]
    assert not Path(".wellposed/reproduce").exists()


def alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
