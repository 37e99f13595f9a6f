"""Progress on the terminal: one quiet rich bar a stage, and one line saying where the result is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False)


@contextmanager
def bar(what: str, total: int) -> Iterator[Bar]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(what, total=total, note=""))


class Bar:
    def __init__(self, progress: Progress, task):
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        fields: dict[str, Any] = {} if note is None else {"note": note}
        self._progress.update(self._task, advance=steps, **fields)


def wrote(what: str, folder: Path) -> None:
    console.print(f"[green]✓[/green] {what}: {folder}")


def skipped(what: str, folder: Path) -> None:
    console.print(f"[dim]• {what}: already complete in {folder}[/dim]")
