"""OGBench data as transitions of one task: rewards and masks by the package's own relabelling."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np

from dipole_vla.progress import wrote
from dipole_vla.rl.data.generate import is_scripted
from dipole_vla.rl.transitions import Transitions, n_step_transitions
from navsim_adapter.foundation.errors import InputError


def data_name(task: str) -> str:
    """cube-single-play-singletask-task2-v0 -> cube-single-play."""
    return task.split("-singletask")[0]


def load(task: str, folder: Path, gamma: float, n_step: int = 1, weigh_n_step: int | None = None) -> Transitions:
    """The training set of a task from `folder`; InputError names the command that makes it."""
    import ogbench

    name = data_name(task)
    for file in (folder / f"{name}-v0.npz", folder / f"{name}-v0-val.npz"):
        if not file.is_file():
            raise InputError(f"{file}: no such data set; run `dipole-vla data ogbench {name} --out {folder}`")
    try:
        _, data, _ = ogbench.make_env_and_datasets(task, dataset_dir=str(folder))
    except (ValueError, EOFError, OSError) as problem:
        raise InputError(
            f"{folder / name}-v0.npz: cannot be read ({problem}); remove it and run `dipole-vla data ogbench {name}`"
        ) from problem
    return n_step_transitions(
        data["observations"],
        data["actions"],
        data["rewards"],
        data["masks"],
        data["next_observations"],
        np.asarray(data["terminals"]) > 0,
        gamma,
        n_step,
        weigh_n_step,
    )


def download(name: str, folder: Path) -> None:
    """Fetch the published files; InputError says what to do without a network."""
    import ogbench

    try:
        ogbench.download_datasets([f"{name}-v0"], str(folder))
    except (urllib.error.URLError, OSError) as problem:
        make = " or make it: leave out --download" if is_scripted(name) else ""
        raise InputError(f"{name}: cannot be downloaded ({problem}); copy the files to {folder}{make}") from problem
    wrote(f"data {name} (published)", folder / f"{name}-v0.npz")
