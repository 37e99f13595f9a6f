"""How a command ends when it cannot go on: the line a user reads, shared by both command lines."""

from __future__ import annotations

import os
import sys

from navsim_adapter.foundation.errors import InputError

UNREAD = 141  # what a shell says of a program whose reader is gone


class Unwell(Exception):
    """A check has failed; the findings are printed already."""


def one_line(problem: InputError | OSError) -> str:
    """An InputError's own words; of what the system refused, the path and the system's words."""
    text = str(problem)
    if isinstance(problem, OSError) and problem.strerror:
        path = problem.filename2 or problem.filename  # of two, a rename's target
        text = f"{problem.strerror.lower()}; check this path and the permissions on it"
        text = f"{path}: {text}" if path else problem.strerror
    return " ".join(text.split())


def stdout_closed() -> int:
    """The exit code once the reader of standard output is gone, as after `| head`; what is still unwritten is dropped,
    or Python would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD
