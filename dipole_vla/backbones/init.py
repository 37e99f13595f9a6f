"""`dipole-vla init`: a backbone folder with random weights, to train from nothing or to try a set-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from dipole_vla.backbones import FAMILIES, backbone_class
from dipole_vla.progress import console, skipped, wrote
from navsim_adapter.errors import InputError, did_you_mean
from navsim_adapter.files import begin, finish


def init(
    family: str,
    out: Path,
    size: Literal["tiny"] = "tiny",
    sizes: dict[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Write a new backbone folder with random weights.

    Args:
        family: model family, e.g. dp_vla.
        out: folder to write.
        size: the configuration to start from.
        sizes: fields of the configuration to change.
        seed: weights.
    """
    if family not in FAMILIES:
        raise InputError(
            f"family: {family!r} is not known{did_you_mean(family, list(FAMILIES))}; known are {', '.join(FAMILIES)}"
        )
    made_by = {"command": "init", "family": family, "size": size, "sizes": sizes or {}, "seed": seed}
    if not begin(out, made_by):
        return skipped("init", out)
    kind = backbone_class(family)
    try:
        config = kind.config_class.tiny(**(sizes or {}))  # type: ignore[attr-defined]
    except TypeError as problem:
        raise InputError(f"sizes: {problem}; known are the fields of {kind.config_class.__name__}") from problem
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.tiny(config)  # type: ignore[attr-defined]
    model.save_pretrained(out)
    finish(out, made_by)
    console.print(f"{family}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    wrote("init", out)
