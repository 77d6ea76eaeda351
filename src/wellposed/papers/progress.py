"""Progress of ``reproduce`` on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from ..workbench.progress import EVERY, minutes

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """Counts finished claims, names those that run, and says how long the rest will take.

    Args:
        console: on stderr.
        expected: id -> seconds, of every claim to be run.
        jobs: worker processes.
    """

    def __init__(self, console: Console, expected: Mapping[str, float], jobs: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.console, self.expected, self.jobs = console, expected, jobs
        self.running: list[str] = []
        self.finished: list[str] = []
        self.bar = Bar(
            TextColumn("claims"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.fields[now]}"), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal, redirect_stdout=sys.stdout.isatty(),
        )  # fmt: skip
        self.task = self.bar.add_task("claims", total=len(expected), left="", now="")
        self.begin = self.spoken = time.monotonic()

    def __enter__(self) -> Progress:
        if self.expected and not self.console.is_terminal:
            self.console.print(f"{len(self.expected)} claims, about {minutes(self.left())}", highlight=False)
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def started(self, id: str) -> None:
        """A claim begins."""
        self.running.append(id)
        self._show()

    def ended(self, id: str) -> None:
        """A claim has its result."""
        if id in self.running:
            self.running.remove(id)
        self.finished.append(id)
        self._show()
        now = time.monotonic()
        if not self.console.is_terminal and now - self.spoken > EVERY:
            self.spoken = now
            done = f"{len(self.finished)} of {len(self.expected)} claims"
            self.console.print(f"{done}, {minutes(self.left())} left", highlight=False)

    def left(self) -> float:
        """Seconds: by what the claims took when they were recorded, and how much faster or slower it goes now."""
        total, done = sum(self.expected.values()), sum(self.expected[id] for id in self.finished)
        pace = (time.monotonic() - self.begin) / done if done else 1 / self.jobs
        return (total - done) * pace

    def _show(self) -> None:
        self.bar.update(
            self.task, completed=len(self.finished), left=f"{minutes(self.left())} left", now=" ".join(self.running)
        )
