"""How far a long command has come: a bar on a terminal, a line a minute in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

LINE_EVERY = 60.0  # seconds


class Lines:
    """A line a minute: what is done, and how long the rest takes at that speed; none for what ends sooner."""

    def __init__(self, what: str, write: Callable[[str], None]):
        self.what, self.write = what, write
        self._first: tuple[float, int] | None = None  # a resumed run is measured from where it resumed
        self._written = time.monotonic()

    def show(self, done: int, total: int | None, note: str = "") -> None:
        now = time.monotonic()
        start, first = self._first = self._first or (now, done)
        if now - self._written < LINE_EVERY:
            return
        self._written = now
        words = [f"{self.what}: {done}" + (f" of {total}" if total else "")]
        if total and done > first:
            words.append(f"about {span((now - start) * (total - done) / (done - first))} to go")
        self.write(", ".join([*words, note] if note else words))


def span(seconds: float) -> str:
    """45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Progress of one unit (logs, scenes) on stderr."""

    def __init__(self, unit: str):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(unit, total=None)
        self.lines = None if console.is_terminal else Lines(unit, lambda line: print(line, file=sys.stderr, flush=True))

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.bar.stop()

    def show(self, done: int, total: int | None) -> None:
        self.bar.update(self.task, completed=done, total=total)
        if self.lines is not None:
            self.lines.show(done, total)
