"""Progress of a comparison on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from .plan import Job, Plan
from .pool import Event

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 10.0  # seconds between plain lines


class Progress:
    """Counts finished runs; names what runs now and the time left, from the runs so far."""

    def __init__(self, console: Console, plan: Plan) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.console, self.plan = console, plan
        self.live = console.is_terminal
        self.bar = Bar(
            TextColumn("{task.description:<9}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"), TextColumn("[dim]{task.fields[now]}"), TimeElapsedColumn(),
            console=console, transient=True, disable=not self.live,
        )  # fmt: skip
        self.task = self.bar.add_task("start", total=plan.runs, left="", now="")
        self.done = self.failed = 0
        self.name = "start"
        self.begin = self.spoken = time.perf_counter()
        self.spent = 0.0  # planned seconds of the finished runs
        self.expected = plan.runs * sum(plan.costs.values()) / len(plan.costs)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if error is None:
            took = time.perf_counter() - self.begin
            failed = f", {self.failed} failed" if self.failed else ""
            self.console.print(f"done   {self.done} runs in {minutes(took)}{failed}", highlight=False)

    def phase(self, name: str, jobs: list[Job]) -> None:
        """A phase begins."""
        self.name = name
        self.bar.update(self.task, description=name)
        if not self.live:
            self.console.print(f"{name}: {len(jobs)} runs", highlight=False)

    def event(self, event: Event, job: Job) -> None:
        """A run begins or ends."""
        name = f"{job.row} seed {job.seed}"
        if event.kind == "started":
            self.bar.update(self.task, now=name)
            return
        self.done += 1
        self.failed += event.kind == "failed"
        self.spent += self.plan.costs[job.row]
        now = time.perf_counter()
        share = min(1.0, max(self.spent / self.expected, self.done / self.plan.runs))
        left = (now - self.begin) * (1 - share) / share if self.done > 2 else self.plan.seconds
        self.bar.update(self.task, completed=self.done, left=f"{minutes(left)} left")
        if not self.live and now - self.spoken > EVERY:
            self.spoken = now
            self.console.print(
                f"{self.name}: {self.done} of {self.plan.runs} runs, {name}, {minutes(left)} left", highlight=False
            )


def minutes(seconds: float) -> str:
    """``75`` -> ``1m15s``."""
    whole = round(seconds)
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
