"""Which drives are worth a look, and their films."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from navsim_adapter.closed_loop.film import film
from navsim_adapter.closed_loop.run import Run, drive_file, read_drive
from navsim_adapter.closed_loop.summary import Row, Rows
from navsim_adapter.foundation.files import write_bytes

FILMS = "films"
FILMED = 2  # of the worst, and of the best
Film = tuple[str, Path]  # caption, file


def films_of(run: Run, rows: Rows, others: Rows | None) -> list[Film]:
    """The worst and the best drives, each of another log; beside another driver, the greatest losses and gains."""
    return [_film(run, kind, rows[at], others[at] if others else None) for kind, at in chosen(rows, others)]


def chosen(rows: Rows, others: Rows | None) -> list[tuple[str, int]]:
    """(what it is an example of, place of the row), the worst first."""

    def merit(at: int) -> tuple[float, ...]:
        gain = rows[at]["score"] - others[at]["score"] if others else 0.0
        return gain, rows[at]["score"], rows[at]["metres"]

    worst = _of_different_logs(rows, sorted(range(len(rows)), key=merit))
    taken = {rows[at]["log"] for at in worst}
    rest = [at for at in sorted(range(len(rows)), key=merit, reverse=True) if rows[at]["log"] not in taken]
    names = ("loss", "gain") if others else ("worst", "best")
    return [(names[0], at) for at in worst] + [(names[1], at) for at in _of_different_logs(rows, rest)]


def _of_different_logs(rows: Rows, order: Sequence[int]) -> list[int]:
    first = {rows[at]["log"]: at for at in reversed(order)}
    return [at for at in order if first[rows[at]["log"]] == at][:FILMED]


def _film(run: Run, kind: str, row: Row, other: Row | None) -> Film:
    log, seed = row["log"], row["seed"]
    path = Path(run.out) / FILMS / f"{kind}_{log}_{seed}.webp"
    pairs = [(run.out, row)] + ([(run.beside, other)] if run.beside and other else [])
    said = [f"{own['driver']}: score {100 * own['score']:.0f}" for _, own in pairs]
    if not path.is_file():
        drives = [(words, read_drive(drive_file(out, log, seed))[0]) for words, (out, _) in zip(said, pairs)]
        write_bytes(path, film(run.course(log), run.manner, drives))
    return f"{kind}: {row['layout']}, {row['situation']} ({log}, seed {seed}); {', '.join(said)}", path
