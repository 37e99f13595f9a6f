"""Model families behind the `Backbone` seam; a family is one folder here and one line in `FAMILIES`."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from dipole_vla.backbones.base import Backbone
from dipole_vla.backbones.weights import read_record
from navsim_adapter.foundation.errors import InputError, did_you_mean

FAMILIES: dict[str, tuple[str, str]] = {
    "dp_vla": ("dipole_vla.backbones.dp_vla.model", "DPVLA"),
    "pi0": ("dipole_vla.backbones.pi0.model", "PI0"),
    "recogdrive": ("dipole_vla.backbones.recogdrive.model", "ReCogDrive"),
    "timm": ("dipole_vla.backbones.timm.model", "TimmDriver"),
    "xvla": ("dipole_vla.backbones.xvla.model", "XVLA"),
}
"""Family name in config.json -> module and class; imported when first used."""


def backbone_class(family: str) -> type[Backbone]:
    """The class of a family of `FAMILIES`; InputError if its module or class is not there."""
    module, name = FAMILIES[family]
    try:
        found: type[Backbone] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise InputError(
            f"FAMILIES[{family!r}]: {module}.{name} cannot be imported ({problem}); correct it"
        ) from problem
    return found


def load_backbone(folder: str | Path, device: str | torch.device = "cpu") -> Backbone:
    """The backbone saved in `folder`, whatever its family; InputError if the folder is not one of ours."""
    path = Path(folder) / "config.json"
    family = read_record(path, ("family", "config", "action", "solver"))["family"]
    if family not in FAMILIES:
        hint = did_you_mean(str(family), list(FAMILIES))
        raise InputError(f"{path}: family {family!r} is not known{hint}; known are {', '.join(FAMILIES)}")
    return backbone_class(family).from_pretrained(folder, device)
