"""Worker processes for claims: each runs one at a time, is killed when that takes too long, and replaced when it dies.

The pool of the workbench is for thousands of short runs, which share the standard library's executor; that one cannot
end a single process. A claim takes seconds, so here every process has a pipe of its own, and whose end of file it is
tells whose claim crashed.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any

import torch

from ..workbench.outcome import Failure
from ..workbench.pool import quiet_start
from ..workbench.progress import minutes

Spec = dict[str, Any]  # JSON-able
Work = Callable[[Spec], dict[str, Any]]


def work_through(
    work: Work,
    specs: Sequence[Spec],
    jobs: int,
    timeout: float,
    *,
    may_start: Callable[[int], bool] = lambda index: True,
    on_start: Callable[[int], None] = lambda index: None,
) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
    """Yields (index, result or Failure) as specs are done. Ending the iteration, Ctrl-C included, ends all workers.

    Args:
        work: a function at the top level of a module; its result is JSON-able.
        specs: what it is called with, started in this order.
        jobs: worker processes.
        timeout: seconds that one spec may take by the clock.
        may_start: asked before each start; after the first no nothing more is started.
        on_start: told of each start.
    """
    waiting = deque(range(len(specs)))
    workers: list[_Worker] = []
    try:
        while waiting or any(w.job is not None for w in workers):
            busy = sum(w.job is not None for w in workers)
            while len(workers) < min(jobs, busy + len(waiting)):
                workers.append(_Worker(work))
            for worker in [w for w in workers if w.ready and w.job is None]:
                if waiting and not may_start(waiting[0]):
                    waiting.clear()
                if not waiting:
                    break
                if worker.start(waiting[0], specs[waiting[0]]):
                    on_start(waiting.popleft())
                else:  # it died while it was idle: nobody's fault
                    workers.remove(worker.ended())
            if not waiting:  # some may not even have come up yet
                for worker in [w for w in workers if w.job is None]:
                    workers.remove(worker.ended())
            if not workers:
                continue
            ends = [w.since + timeout for w in workers if w.job is not None]
            heard = wait([w.pipe for w in workers], max(0.0, min(ends) - monotonic()) if ends else None)
            for worker in list(workers):
                job, answer = worker.job, None
                if worker.pipe in heard:
                    answer = worker.answer()
                elif job is not None and monotonic() - worker.since >= timeout:
                    answer = _Gone(f"stopped after {minutes(timeout)}: it takes longer than a claim may")
                if isinstance(answer, _Gone):
                    workers.remove(worker.ended())
                    answer = Failure(answer.why)
                if answer is not None and job is not None:
                    yield job, json.loads(answer) if isinstance(answer, str) else answer
    finally:
        for worker in workers:
            worker.ended()


@dataclass(frozen=True)
class _Gone:
    """What a worker that cannot be used any more leaves instead of an answer."""

    why: str


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, work: Work) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(work, theirs))
        self.ready, self.since = False, 0.0
        self.job: int | None = None
        with quiet_start():
            self.process.start()
        theirs.close()  # the only other end is then the process's own: end of file means that it died

    def start(self, job: int, spec: Spec) -> bool:
        """Hand it a spec; False if the process is dead."""
        try:
            self.pipe.send(spec)
        except OSError:
            return False
        self.job, self.since = job, monotonic()
        return True

    def answer(self) -> str | Failure | _Gone:
        """What it sent: that it is ready, its result as JSON text, or a failure."""
        try:
            found: str | Failure = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            if not self.ready:
                raise RuntimeError(f"no worker process could be started ({how})") from None
            return _Gone(f"the worker process died ({how})")
        self.ready, self.job = True, None
        return found

    def ended(self) -> _Worker:
        """Itself, when the process has ended, whatever it was doing."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return self


# ---- in the worker
def _serve(work: Work, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the coordinator answers it
    threading.Thread(target=_watch, daemon=True).start()
    torch.set_num_threads(1)
    pipe.send("ready")
    while True:
        try:
            spec = pipe.recv()
        except EOFError:
            return
        try:
            answer: str | Failure = json.dumps(work(spec), allow_nan=False)
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            answer = Failure(reason, traceback.format_exc())
        pipe.send(answer)


def _watch() -> None:
    """End with the coordinator, even after its kill -9."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
