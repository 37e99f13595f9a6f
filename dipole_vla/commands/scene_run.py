"""The options that `collect`, `drive` and `evaluate` share. Nothing heavy is imported: help and recipes need it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from navsim_adapter.foundation.option_checks import check_range


@dataclass(frozen=True)
class SceneRun:
    """Which policy drives which scenes, on what, and where to.

    Args:
        policy: policy folder written by `dipole-vla fit`; of collect and drive also a backbone folder (the reference).
        scenes: folder written by `navsim-adapter convert`.
        out: folder to write; of drive the table, T.npz, with what made it in its array `about`.
        sensors: root of the camera paths; default is the one recorded in `scenes`.
        batch_size: scenes per forward pass.
        device: auto, cpu, cuda.
        backbone: of a policy folder, where its backbone is no longer at the place that the policy names.
        allow_eval_split: run although training and evaluation then share scenes; what comes of it says so in red.
        shard: i/n, do this part of the work only, as a task of a job array; the last to finish puts them together.
    """

    policy: Path
    scenes: Path
    out: Path
    sensors: Path | None = None
    batch_size: int = 32
    device: str = "auto"
    backbone: Path | None = None
    allow_eval_split: bool = False
    shard: str | None = None

    def __post_init__(self) -> None:
        check_range("--batch_size", self.batch_size, 1)
