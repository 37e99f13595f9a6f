"""`dipole-vla data`: offline data sets on this machine, found, downloaded or made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dipole_vla.rl.data import exorl, ogbench
from dipole_vla.rl.data.generate import EPISODES, generate


def data(
    kind: Literal["ogbench", "exorl-substitute"],
    name: str,
    out: Path | None = None,
    episodes: int | None = None,
    seed: int = 0,
    download: bool = False,
    workers: int = 1,
) -> None:
    """Make an offline data set, or download it; a killed run resumes where it stopped.

    Args:
        kind: ogbench = the package's scripted policies, published recipe; exorl-substitute = random actions in
            ExORL's file format, which are not ExORL.
        name: data set, such as cube-single-play or pointmaze-medium-navigate; for exorl-substitute a task, such as
            walker-walk.
        out: folder to write; default data/ogbench, or data/exorl-substitute/NAME.
        episodes: training episodes (a tenth of that is made for validation); default 1,000 as published, 100 for the
            substitute.
        seed: of the episodes.
        download: fetch the published files (ogbench) in place of making them.
        workers: processes that make episodes (ogbench).
    """
    if kind == "exorl-substitute":
        exorl.substitute(name, out or Path("data/exorl-substitute") / name, episodes or 100, seed)
    elif download:
        ogbench.download(name, out or Path("data/ogbench"))
    else:
        generate(name, out or Path("data/ogbench"), episodes or EPISODES, seed, workers)
