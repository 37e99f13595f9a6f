"""What the commands that drive have in common: the record of their inputs, and a folder made in parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dipole_vla.commands.parts import FOLDER, read_parts, run_parts
from dipole_vla.commands.scene_run import SceneRun
from dipole_vla.data.pictures import pictures_entry
from dipole_vla.data.tables import SceneTable
from dipole_vla.policy import GuidedPolicy
from dipole_vla.progress import skipped
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, is_made, making, stamp


def inputs(command: str, run: SceneRun, table: SceneTable, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What decides a result, as far as the shared options go. before: the same of the run that is in `run.out`."""
    return {
        "command": command,
        "policy": stamp(run.policy),
        "scenes": stamp(run.scenes),
        **pictures_entry(table.pictures, before, run.out),
    }


def is_finished(run: SceneRun, made_by: Mapping[str, Any]) -> bool:
    """Whether the folder is there, made of the same; says so, and removes parts that outlived its end."""
    if not is_made(run.out, made_by):
        return False
    shutil.rmtree(run.out / FOLDER, ignore_errors=True)
    skipped(str(made_by["command"]), run.out)
    return True


def make_folder(
    run: SceneRun,
    made_by: Mapping[str, Any],
    table: SceneTable,
    make: Callable[[range], pa.Table],
    assemble: Callable[[pa.Table], None],
) -> bool:
    """Make `run.out` part by part; whether this run, of several that each make a shard, has put them together.

    make: scene positions -> their rows.  assemble: all rows -> the folder's files.
    """
    command = str(made_by["command"])
    if not run_parts(run.out, made_by, f"{command} {table.split}", len(table), make, run.shard):
        return False
    with making(run.out, made_by, wait=True) as is_open:
        if not is_open:
            skipped(command, run.out)  # another shard has put them together
            return False
        assemble(read_parts(run.out))
        finish(run.out, made_by, exclude=(FOLDER,))
        shutil.rmtree(run.out / FOLDER)
    return True


def require_critic(actor: GuidedPolicy, policy: Path, candidates: int, variants: int = 0) -> None:
    """Raises InputError, before the first scene is driven, where there is a choice and nothing to choose by."""
    if variants and actor.critic is None:
        raise InputError(f"variants: {variants} of each plan to choose from, but {policy} has no critic; use 0")
    if candidates > 1 and actor.critic is None:
        raise InputError(f"candidates: {candidates} to choose from, but {policy} has no critic; use 1")


def greed_and_count(
    policy: Path, actor: GuidedPolicy, omega: float | str | None, candidates: int | None
) -> tuple[float | None, int]:
    """Omega and N that were asked for, checked before the first scene is encoded."""
    count = actor.guidance.candidates if candidates is None else candidates
    if isinstance(omega, str):
        omega = None if actor.pair is None else actor.guidance.omega
    if omega is not None and actor.pair is None:
        raise InputError(f"omega: {policy} is a backbone without adapters; leave omega out, or give a policy folder")
    return omega, count
