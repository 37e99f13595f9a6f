"""The demo's closed loop: the fairest reference, then the chosen policy beside it, through the port that others use.

The policy is served in this process, in place of the second terminal that one would open.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dipole_vla.evaluation.settings import Setting
from dipole_vla.evaluation.summary import REFERENCE, difference_words
from dipole_vla.progress import console
from dipole_vla.report.closed_loop import lead, read_closed_loop, survival
from navsim_adapter.closed_loop.summary import said
from navsim_adapter.foundation.files import is_complete, read_json

EXTRA = "carla_driver_interface"  # of pip install 'dipole-vla[drive]'
LOGS = 8  # of 8 s; a drive costs a few CPU seconds. They show what is done, rarely what comes out


def drive_both(folder: Path, world: Path, run: Callable[[list[str]], None]) -> Path | None:
    """Drive what `folder`'s evaluation chose in the first test logs, and its reference; the folder to report.

    None, with a line that says why, where it cannot be done. run: a command line.
    """
    chosen = read_json(folder / "evaluation" / "summary.json")["chosen"]
    own = Setting.of({"policy": "dipole", **chosen})
    reference = Setting.of(chosen["references"][str(own.candidates)])
    problem = _problem(own, reference)
    if problem:
        console.print(f"no closed loop: {problem}", markup=False, soft_wrap=True)
        return None
    before = None
    for name, setting in (("reference", reference), ("chosen", own)):
        out = folder / "closed_loop" / name
        if not is_complete(out):
            _drive(folder / "dipole", setting, name, world, out, before, run)
        before = out
    return before


def _problem(own: Setting, reference: Setting) -> str | None:
    if find_spec(EXTRA) is None:
        return "it needs pip install 'dipole-vla[drive]'"
    if own.guidance or reference.policy != REFERENCE:
        return f"{own.guidance or 'the mean of plans'} is more than what `serve` is told here"
    return None


def _drive(
    policy: Path, setting: Setting, name: str, world: Path, out: Path, beside: Path | None, run: Callable[..., None]
) -> None:
    from dipole_vla.commands.serve import driver  # the extra is there
    from dipole_vla.serving.server import opened

    keys: dict[str, Any] = {
        "omega": setting.omega,
        "candidates": setting.candidates,
        "start_scale": setting.start_scale,
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", "null" if value is None else f"{value:g}")]
    with opened(driver(policy, **keys), "localhost", 0, "carla", most=4) as address:
        port = address.rsplit(":", 1)[1]
        serve = ["dipole-vla", "serve", "--policy", str(policy), *words, "--port", port]
        console.print(f"\n$ {shlex.join(serve)} &", style="bold", markup=False)
        line = ["navsim-adapter", "closed-loop", "--world", world, "--split", "test", "--driver", address]
        line += ["--name", name, "--scenes", LOGS, "--out", out, *(["--beside", beside] if beside else [])]
        run([str(word) for word in line])


def words_of(closed_loop: Path, row: dict[str, Any]) -> str:
    """Open-loop and closed-loop gain side by side. row: of the summary, the chosen setting's."""
    content = read_closed_loop(closed_loop)
    gain = said(content["other"]["gain"]["score"], "+")
    return (
        f"gain over the fairest reference: open loop {difference_words(row, 'fairest_gain')}, closed loop {gain} "
        f"({lead(content)}): {survival(row['fairest_gain_ci95'], content)}"
    )
