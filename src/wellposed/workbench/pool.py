"""Many independent runs in worker processes with one thread each.

The executor is the standard library's; this adds what a long comparison on somebody's machine needs. A run that
raises, or takes its process with it, is one `Failure` and the others go on. Ctrl-C ends all workers at once. Workers
cannot outlive the coordinator, not even after kill -9: each watches the reading end of a pipe whose writing end only
the coordinator holds, and exits when it closes.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, Literal, NamedTuple, Self

from .errors import BadInput
from .outcome import Failure

Spec = dict[str, Any]  # JSON-able
Function = Callable[[Spec], dict[str, Any]]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class CannotSend(BadInput):
    """The function or a spec cannot travel to a worker process."""


class Event(NamedTuple):
    """Progress of one job. `seconds` is 0 for "started"; a job may start again after another's crash."""

    kind: Literal["started", "finished", "failed"]
    job: int  # index of its spec
    seconds: float = 0.0


class Pool:
    """Worker processes that call one function on many specs; a context manager.

    Args:
        function: takes a JSON-able dict and returns one; "package.module:function", or a callable at the top level of a
            module.
        workers: processes. With 1 the runs happen in this process, with its threads, and nothing protects it from a
            run that kills its process.

    Raises:
        CannotSend: the function is not found or cannot be pickled. Nothing has been started then.
    """

    def __init__(self, function: str | Function, workers: int) -> None:
        if workers < 1:
            raise BadInput(f"at least one worker is needed; got {workers}")
        self.function = _resolve(function)
        self.workers = workers
        if workers > 1:
            _check_picklable(self.function)
        self._executor: ProcessPoolExecutor | None = None
        self._lifeline: tuple[Connection, Connection] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(
        self,
        specs: Sequence[Spec],
        *,
        costs: Sequence[float] | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
        """Yields (index of the spec, result or Failure) as runs finish.

        Args:
            costs: expected seconds of each spec; the longest start first, so that none is left alone at the end.
            on_event: called in this process. If it, or the consumer of this iterator, raises (Ctrl-C included), all
                workers are ended and nothing more runs.

        Raises:
            CannotSend: a spec is not JSON; nothing has been started then.
        """
        texts = [_json(spec) for spec in specs]
        order = list(range(len(texts)))
        if costs is not None:
            order.sort(key=lambda i: -costs[i])
        if self.workers == 1:
            yield from self._here(texts, order, on_event)
            return
        try:
            yield from self._there(texts, order, on_event)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the workers at once, whatever they are doing."""
        executor, lifeline = self._executor, self._lifeline
        self._executor = self._lifeline = None
        for end in lifeline or ():
            end.close()
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)

    def _here(
        self, texts: list[str], order: list[int], on_event: Callable[[Event], None]
    ) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
        for index in order:
            on_event(Event("started", index))
            yield _told(index, _call(texts[index], self.function), on_event)

    def _there(
        self, texts: list[str], order: list[int], on_event: Callable[[Event], None]
    ) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
        waiting = order[::-1]
        suspects: list[int] = []  # were running when a worker died; each is run again alone, to find the culprit
        running: dict[Future[_Answer], int] = {}
        while waiting or suspects or running:
            alone = bool(suspects)
            source, room = (suspects, 1) if alone else (waiting, self.workers)
            while source and len(running) < room:
                index = source.pop()
                try:
                    running[self._submit(texts[index])] = index
                except BrokenProcessPool:  # a worker died while idle: nobody's fault
                    source.append(index)
                    self.close()
                    continue
                on_event(Event("started", index))
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            broken = []
            for future in done:
                index = running.pop(future)
                try:
                    answer = future.result()
                except BrokenProcessPool:
                    broken.append(index)
                    continue
                yield _told(index, answer, on_event)
            if broken:
                broken += running.values()
                running.clear()
                self.close()
                if len(broken) > 1:
                    suspects = sorted({*suspects, *broken}, reverse=True)
                    continue
                died = Failure("the worker process died: killed by the system (out of memory?) or by the run itself")
                yield _told(broken[0], _Answer(died, 0.0), on_event)

    def _submit(self, text: str) -> Future[_Answer]:
        if self._executor is None:
            context = get_context("spawn")
            self._lifeline = context.Pipe(duplex=False)
            self._executor = ProcessPoolExecutor(self.workers, context, _begin, (self.function, self._lifeline[0]))
        with quiet_start():  # the executor starts a process at a submit that finds none idle
            return self._executor.submit(_work, text)


def run_jobs(
    function: str | Function,
    specs: Sequence[Spec],
    workers: int,
    on_event: Callable[[Event], None] = lambda event: None,
    costs: Sequence[float] | None = None,
) -> Iterator[tuple[int, dict[str, Any] | Failure]]:
    """`Pool.run` on a pool of its own; see there."""
    with Pool(function, workers) as pool:
        yield from pool.run(specs, costs=costs, on_event=on_event)


class _Answer(NamedTuple):
    """What a job brings back: JSON text or a Failure, and its seconds."""

    result: str | Failure
    seconds: float


def _told(index: int, answer: _Answer, on_event: Callable[[Event], None]) -> tuple[int, dict[str, Any] | Failure]:
    result = answer.result
    on_event(Event("failed" if isinstance(result, Failure) else "finished", index, answer.seconds))
    return index, result if isinstance(result, Failure) else json.loads(result)


def _call(text: str, function: Function) -> _Answer:
    start = perf_counter()
    try:
        result: str | Failure = json.dumps(function(json.loads(text)))
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        result = Failure(reason, traceback.format_exc())
    return _Answer(result, perf_counter() - start)


# -- in the worker --

_function: Function


def _begin(function: Function, lifeline: Connection) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the coordinator answers it
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()
    _function = function
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def _watch(lifeline: Connection) -> None:
    lifeline.poll(None)  # nothing is ever sent: it returns at end of file
    os._exit(1)


def _work(text: str) -> _Answer:
    return _call(text, _function)


# -- before anything starts --


def _resolve(function: str | Function) -> Function:
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    try:
        found: Function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CannotSend(f"'{function}' is not found as 'package.module:function' ({error})") from error
    return found


def _check_picklable(function: Function) -> None:
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        name = getattr(function, "__qualname__", repr(function))
        raise CannotSend(
            f"{name} cannot be sent to a worker process ({error}); "
            "define it at the top level of a module, or run one job at a time"
        ) from error


def _json(spec: Spec) -> str:
    try:
        return json.dumps(spec)
    except (TypeError, ValueError) as error:
        raise CannotSend(f"a job must be described by JSON values only ({error})") from error


@contextmanager
def quiet_start() -> Iterator[None]:
    """What processes started here inherit: one thread each, and no death by Ctrl-C while they import.

    Thread counts are read when libraries load, which is before any code of ours runs in the worker. A Ctrl-C that
    arrives meanwhile is delivered to this process at the end.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    masks = hasattr(signal, "pthread_sigmask")
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
