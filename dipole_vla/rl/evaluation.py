"""The whole table of a run: every method, omega and N on the same episodes and start noise, as rows of a CSV file."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dipole_vla.progress import Bar
from dipole_vla.rl.acting import Panel, Player, start_noise
from dipole_vla.rl.config import EvaluationConfig
from dipole_vla.rl.environments import Act, Environment, play
from dipole_vla.rl.heads import METHODS, Method, method_named
from dipole_vla.rl.learner import Learner
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_text

COLUMNS = ("task", "method", "seed", "omega", "candidates", "return", "episodes", "updates", "commit")
FIRST_EPISODE = 10_000_000  # evaluation episodes start here; collected ones count up from 0


@dataclass(frozen=True)
class Cell:
    """One row of the table, before it is measured."""

    method: str
    omega: float
    candidates: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        words = text.split(":")
        if len(words) != 3:
            raise InputError(f"evaluation.curve: {text!r} is not method:omega:candidates, such as dipole:1:32")
        return cls(words[0], float(words[1]), int(words[2]))


def cells(config: EvaluationConfig, heads: Sequence[str]) -> list[Cell]:
    """The full table: the dial for methods that have one."""
    found = []
    for name in config.methods:
        dial = config.omega if method_named(name, heads).negative is not None else [0.0]
        found += [Cell(name, omega, count) for omega in dial for count in config.candidates]
    return found


def player(cell: Cell, seed_number: int) -> Player:
    return Player(seed_number, METHODS[cell.method], cell.omega, cell.candidates)


def acting(panel: Panel, seed: int, most: int) -> Act:
    """The panel with its start noise. most: the largest N of the table, so that all of it shares the noise."""
    size = panel.learner.action_dim

    def act(observation: np.ndarray, episodes: np.ndarray, step: int) -> np.ndarray:
        noise = start_noise(seed, episodes, step, panel.candidates, size, most)
        return panel.act(torch.from_numpy(observation), noise).numpy()

    return act


def measure(
    learner: Learner,
    fleet: Sequence[Environment],
    wanted: Sequence[tuple[int, Cell]],
    episodes: int,
    config: EvaluationConfig,
    progress: Bar,
) -> list[float]:
    """Mean return of every (seed number, cell), all on the same episodes.

    Cells are played side by side as far as the fleet reaches; those that need one network apart from those that
    need two.
    """
    most = max([*config.candidates, *(cell.candidates for _, cell in wanted)])
    seeds = config.seed * 100_000 + FIRST_EPISODE + np.arange(episodes)
    means = np.zeros(len(wanted))
    alike: dict[Player, list[int]] = {}  # without guidance methods of the same network are the same player
    for place, (number, cell) in enumerate(wanted):
        found = player(cell, number)
        if cell.omega == 0:
            found = replace(found, method=Method(found.method.positive))
        alike.setdefault(found, []).append(place)
    kinds: dict[tuple[int, bool], list[Player]] = {}
    for one in alike:
        kinds.setdefault((one.candidates, one.omega == 0), []).append(one)
    together = max(1, len(fleet) // min(episodes, len(fleet)))
    for players in kinds.values():
        for start in range(0, len(players), together):
            group = players[start : start + together]
            panel = Panel(learner, group)
            played = play(fleet, acting(panel, config.seed, most), np.tile(seeds, (len(group), 1)))
            for one, mine in zip(group, played):
                means[alike[one]] = np.mean([episode.gain for episode in mine])
                progress.advance(len(alike[one]))
    return means.tolist()


def append_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Add rows to a result table, replacing those of the same task, method, seed, cell and updates.

    Safe among processes that share the table; a kill leaves it as it was before or after.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(path.parent):
        table = {_key(row): row for row in read_rows(path)}
        table.update({_key(row): {name: _text(row[name]) for name in COLUMNS} for row in rows})
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.values())
        write_text(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and tuple(rows[0]) != COLUMNS:
        raise InputError(f"{path}: columns are {list(rows[0])}, expected {list(COLUMNS)}; choose another --results")
    return rows


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder itself is the lock: no file of it is left behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _key(row: dict[str, object] | dict[str, str]) -> tuple[str, ...]:
    return tuple(_text(row[name]) for name in ("task", "method", "seed", "omega", "candidates", "updates"))


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
