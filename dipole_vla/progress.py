"""Progress: one quiet rich bar a stage (in a log file a line a minute), and one line saying where the result is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from navsim_adapter.foundation.progress import Lines

console = Console(highlight=False, emoji=False)


@contextmanager
def bar(what: str, total: int) -> Iterator[Bar]:
    if not console.is_terminal:
        lines = Lines(what, lambda line: console.print(line, soft_wrap=True))
        yield Bar(total, lines.show)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, note="")
        yield Bar(total, lambda done, total, note: progress.update(task, completed=done, total=total, note=note))


class Bar:
    """Counts what is done. show: gets done, total and the last note."""

    def __init__(self, total: int, show: Callable[[int, int, str], None]):
        self._total, self._show = total, show
        self._done, self._note = 0, ""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self._done += steps
        self._note = self._note if note is None else note
        self._show(self._done, self._total, self._note)


def wrote(what: str, folder: Path) -> None:
    console.print(f"[green]✓[/green] {what}: {escape(str(folder))}", soft_wrap=True)


def skipped(what: str, folder: Path) -> None:
    console.print(f"• {what}: already complete in {folder}", style="dim", markup=False, soft_wrap=True)
