"""`dipole-vla report`: one HTML page from an evaluation."""

from __future__ import annotations

from pathlib import Path

from dipole_vla.progress import console, wrote
from dipole_vla.report.page import write_report


def report(evaluation: Path, out: Path | None = None, scenes: int = 4, closed_loop: Path | None = None) -> None:
    """One HTML page from an evaluation.

    Args:
        evaluation: folder written by `dipole-vla evaluate`.
        out: folder to write; default is `report` beside the evaluation.
        scenes: how many worst losses and how many best gains to show.
        closed_loop: folder of `navsim-adapter closed-loop --beside`, whose figures to show, too.
    """
    console.print(f"report: drawing {evaluation}", markup=False, soft_wrap=True)
    wrote("report", write_report(evaluation, out or Path(evaluation).resolve().parent / "report", scenes, closed_loop))
