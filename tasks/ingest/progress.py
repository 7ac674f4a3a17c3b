"""Progress of an ingest, shown as bars where a person watches.

Tasks report to the bars of their own process and take no callback, which could not follow them to
another one. Where no bars are shown, in another process or under a test, a report does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

ProgressUnit = Literal["rows read", "files", "months merged"]


class _RateColumn(ProgressColumn):
    """A column with the rate a second; rich itself shows one only of bars without a total."""

    def render(self, task: Task) -> Text:
        """Return a bar's rate, nothing before there is one."""
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f}/s" if rate else "")


class IngestProgress:
    """The bars of this process, one a unit; none until they are shown."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._bar_of_unit: dict[ProgressUnit, TaskID] = {}

    @contextmanager
    def show(self) -> Iterator[Progress]:
        """Show bars on the terminal, if standard error is one, and count what is reported."""
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,} of {task.total:,}"),
            _RateColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        try:
            with self._bars:
                yield self._bars
        finally:
            self._bars = None
            self._bar_of_unit = {}

    def expect(self, unit: ProgressUnit, total: int) -> None:
        """Add the bar of a unit, of which `total` are expected."""
        if self._bars is not None:
            self._bar_of_unit[unit] = self._bars.add_task(unit, total=total)

    def advance(self, unit: ProgressUnit, n_done: int) -> None:
        """Report that `n_done` more are done; from any thread."""
        if self._bars is not None and unit in self._bar_of_unit:
            self._bars.advance(self._bar_of_unit[unit], n_done)


ingest_progress = IngestProgress()
