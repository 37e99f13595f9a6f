"""`dipole-vla init`: a backbone folder with random weights, to train from nothing or to try a set-up."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dipole_vla.backbones import backbone_class
from dipole_vla.backbones.base import Backbone
from dipole_vla.backbones.chosen import choose_interval
from dipole_vla.backbones.published import architecture
from dipole_vla.backbones.weights import check_default_dtype, checked_fields, record_from
from dipole_vla.progress import console, skipped, wrote
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, is_made, making


def init(
    family: str,
    out: Path,
    size: str = "tiny",
    sizes: dict[str, Any] | None = None,
    encoder_weights: Path | None = None,
    interval: float | None = None,
    seed: int = 0,
) -> None:
    """Write a new backbone folder with random weights.

    Args:
        family: model family: alpamayo, dp_vla, pi0, pi05, recogdrive, simwam, smolvla, timm, xvla, or one of an
            installed package.
        out: folder to write.
        size: the configuration to start from: tiny, or a published one of the family (alpamayo, dp_vla_1b,
            recogdrive_2b, xvla_0.9b, pi0, pi05, simwam, smolvla, timm_60m).
        sizes: fields of the configuration to change.
        encoder_weights: timm: file of the encoder's pretrained weights, as timm publishes them.
        interval: seconds between the poses of a plan, of which `sizes.horizon` says how many; default 0.5.
        seed: weights.
    """
    kind = backbone_class(family)
    config = _config(kind, size, sizes or {})
    if encoder_weights is not None and not hasattr(kind, "read_encoder"):
        raise InputError(f"encoder_weights: means nothing to family {family}; import a published checkpoint instead")
    made_by: dict[str, Any] = {"command": "init", "family": family, "size": size, "sizes": sizes or {}, "seed": seed}
    if encoder_weights is not None:
        made_by["encoder_weights"] = str(encoder_weights.resolve())
    if interval is not None:
        made_by["interval"] = interval
    if is_made(out, made_by):
        return skipped("init", out)
    model = _fresh(kind, config, seed)  # before OUT is begun: sizes that cannot be must leave nothing there
    if encoder_weights is not None:
        model.read_encoder(encoder_weights)
    if interval is not None:
        choose_interval(model, interval)
    with making(out, made_by) as is_open:
        if not is_open:
            return skipped("init", out)
        model.save_pretrained(out)
        finish(out, made_by)
    console.print(f"{family}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    wrote("init", out)


def _fresh(kind: type[Backbone], config: Any, seed: int) -> Any:
    check_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return kind.tiny(config)  # type: ignore[attr-defined]
        except InputError:
            raise
        except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as problem:  # of the layers themselves
            reason = (str(problem).splitlines() or [type(problem).__name__])[0][:160]
            raise InputError(f"sizes: no {kind.family} can have these ({reason}); change them") from problem


def _config(kind: type[Backbone], size: str, sizes: dict[str, Any]) -> Any:
    make: Any = kind.config_class
    if size == "tiny":
        make = make.tiny
    else:
        chosen = architecture(size)
        if chosen.family != kind.family:
            raise InputError(f"size: {size} is of family {chosen.family}, got family {kind.family}; correct one")
        sizes = {**chosen.sizes, **sizes}
    width = {"width": sizes["width"]} if size == "tiny" and "width" in sizes else {}  # of all parts of a tiny model
    values = checked_fields(kind.config_class, {name: sizes[name] for name in sizes if name not in width}, "sizes")
    try:
        config = make(**values, **width)
    except TypeError as problem:
        raise InputError(f"sizes: {problem}; known are the fields of {kind.config_class.__name__}") from problem
    return record_from(kind.config_class, asdict(config), "sizes")
