"""Model families behind the `Backbone` seam; a family is one folder here and one line in `FAMILIES`.

Families of others come from their packages, by an entry point of the group `dipole_vla.backbones`, or from a running
program, by `register_backbone`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import torch

from dipole_vla.backbones.base import Backbone
from dipole_vla.backbones.weights import read_record
from navsim_adapter.foundation.errors import InputError, did_you_mean

FAMILIES: dict[str, tuple[str, str]] = {
    "alpamayo": ("dipole_vla.backbones.alpamayo.model", "Alpamayo"),
    "dp_vla": ("dipole_vla.backbones.dp_vla.model", "DPVLA"),
    "pi0": ("dipole_vla.backbones.pi0.model", "PI0"),
    "pi05": ("dipole_vla.backbones.pi05.model", "PI05"),
    "recogdrive": ("dipole_vla.backbones.recogdrive.model", "ReCogDrive"),
    "simwam": ("dipole_vla.backbones.simwam.model", "SimWAM"),
    "smolvla": ("dipole_vla.backbones.smolvla.model", "SmolVLA"),
    "timm": ("dipole_vla.backbones.timm.model", "TimmDriver"),
    "xvla": ("dipole_vla.backbones.xvla.model", "XVLA"),
}
"""Family name in config.json -> module and class; imported when first used."""

GROUP = "dipole_vla.backbones"
"""Entry points of other packages: family name = "module:Class". Read where a family is not one of ours."""

_registered: dict[str, type[Backbone] | str] = {}


def register_backbone(name: str, target: type[Backbone] | str) -> None:
    """Make a family known to this process: `load_backbone`, `init` and all that reads a backbone folder.

    target: the class, or "module:Class", imported when first used. InputError if the name is taken.
    """
    if name in FAMILIES or _registered.get(name, target) != target:
        raise InputError(f"family {name!r}: is known already; choose another name")
    if isinstance(target, type):
        _check(name, target, f"family {name!r}")
    elif not all(word.strip() for word in target.partition(":")):
        raise InputError(f'family {name!r}: must be a class or "module:Class", got {target!r}')
    _registered[name] = target


def backbone_class(family: str, where: str = "family") -> type[Backbone]:
    """The class of a family; InputError if there is none of that name, or it cannot be imported.

    where: who asks for it, for the message.
    """
    if family in FAMILIES:
        return _imported(family, "{}:{}".format(*FAMILIES[family]), f"FAMILIES[{family!r}]")
    if family in _registered:
        target = _registered[family]
        return _imported(family, target, "register_backbone") if isinstance(target, str) else target
    offered = _offered()
    found = [point for point in offered if point.name == family]
    if not found:
        known = sorted({*FAMILIES, *_registered, *(point.name for point in offered)})
        hint = did_you_mean(str(family), known)
        raise InputError(f"{where}: {family!r} is not known{hint}; known are {', '.join(known)}")
    if len({point.value for point in found}) > 1:
        packages = ", ".join(map(_package, found))
        raise InputError(f"{where}: {family!r} is offered by several packages ({packages}); uninstall all but one")
    return _imported(family, found[0].value, f"entry point of {_package(found[0])}")


def load_backbone(folder: str | Path, device: str | torch.device = "cpu") -> Backbone:
    """The backbone saved in `folder`, whatever its family; InputError if the folder is not one of a known family."""
    path = Path(folder) / "config.json"
    family = read_record(path, ("family", "config", "action", "solver"))["family"]
    return backbone_class(family, f"{path}: family").from_pretrained(folder, device)


def _offered() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _imported(family: str, target: str, origin: str) -> type[Backbone]:
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module.strip()), name.strip())
    except Exception as problem:  # whatever the module of another package does when it is imported
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise InputError(f"{origin}: {target} cannot be imported ({reason}); correct it") from problem
    return _check(family, found, f"{origin}: {target}")


def _check(family: str, found: object, origin: str) -> type[Backbone]:
    if not isinstance(found, type) or not issubclass(found, Backbone):
        raise InputError(f"{origin}: must be a class derived from dipole_vla.backbones.base.Backbone, got {found!r}")
    if getattr(found, "family", None) != family:
        own = getattr(found, "family", None)
        raise InputError(f"{origin}: its `family` is {own!r}, but it is offered as {family!r}; they must agree")
    lacking = sorted(getattr(found, "__abstractmethods__", ()))
    if lacking:
        raise InputError(f"{origin}: lacks {', '.join(lacking)}; see docs/add-a-backbone.md")
    return found
