"""Catches the scheduler's termination signal; training stops after the current step.

A handler that saves by itself can fire between forward and step, and on ranks that are at different steps. So it
only sets a flag (`listen`, `notice`); `training.checkpoints` saves. Nothing heavy is imported here: the handlers stand
before the imports of a training begin.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)  # Slurm's --signal and preemption; every other scheduler
EXIT_CODE = 75  # "temporary failure": the same command resumes where this one stopped

_noted: list[str] = []


class Preempted(Exception):
    """The run stopped before its last step, with a checkpoint on disk: at its scheduler's word, or out of time."""


def listen() -> None:
    """Note the signals from now on, in place of whatever handled them."""
    for number in SIGNALS:
        signal.signal(number, _note)


def notice() -> str | None:
    """Name of the first signal that came, None while there is none."""
    return _noted[0] if _noted else None


def requeue() -> str:
    """Ask Slurm to run this job again; says what came of it.

    Not after SIGTERM alone: a job that was cancelled must not come back, and one that was preempted Slurm requeues.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "run the same command to go on"
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the last task has the array's own number, which means all of them
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if set(_noted) == {"SIGTERM"}:
        return f"Slurm requeues job {job} if it was preempted; after a cancellation, submit it again to go on"
    if shutil.which("scontrol") is None:
        return f"scontrol is not on PATH here; requeue job {job} by hand, or submit it again"
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    if answer.returncode:
        return f"scontrol requeue {job}: {' '.join(answer.stderr.split())}; submit it again"
    return f"job {job} is requeued"


def _note(number: int, _frame: FrameType | None) -> None:
    _noted.append(signal.Signals(number).name)
