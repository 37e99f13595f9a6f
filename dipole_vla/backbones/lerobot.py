"""lerobot's policy folders, as 0.5 and 0.6 write them: config.json, weights, and two files that say how data is shown.

    policy_preprocessor.json, policy_postprocessor.json     steps by name, each with its settings
    policy_*_step_N_*normalizer_processor.safetensors       statistics, which config.json does not have

A step whose work we do not do is refused: it would be lost in silence. Which steps a family's processor does itself is
in its own import module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dipole_vla.backbones.base import ActionSpec
from dipole_vla.backbones.source_files import check_pixels, read_config, read_weights, weights_path
from dipole_vla.backbones.source_files import field as required
from dipole_vla.backbones.weights import read_json, read_tensors
from navsim_adapter.foundation.errors import InputError

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"

_PLAIN = ("rename_observations_processor", "to_batch_processor", "device_processor", "tokenizer_processor")
NORMALISERS = ("normalizer_processor", "unnormalizer_processor")
_RELATIVE = ("relative_actions_processor", "absolute_actions_processor")

_STATISTICS = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max")}
_STATISTICS |= {"QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}

_MIGRATE = "saved by lerobot before 0.4; run lerobot's migrate_policy_normalization on it and pass what that writes"


@dataclass(frozen=True)
class Normaliser:
    """normalised = (raw - offset) / scale, a number per channel; empty where numbers are shown as they are."""

    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True)
class Folder:
    """A policy folder of one type, read but for its weights.

    raw: config.json. prompt_tokens: what the words are cut to. notes: what is left out or assumed.
    """

    source: Path
    raw: Mapping[str, Any]
    weights: Path
    state: Normaliser
    action: Normaliser
    prompt_tokens: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return str(self.source / "config.json")

    def tensors(self) -> dict[str, Tensor]:
        """The weights by their own names."""
        file = read_weights(self.weights)
        older = next((name for name in file if name.split(".")[0] in _OLD_BUFFERS), None)
        if older is not None:
            raise InputError(f"{self.weights}: holds a normaliser ({older}), so it was {_MIGRATE}")
        return file

    def refuse(self, **wanted: Any) -> None:
        """InputError for a field of config.json that asks for what is not done here; wanted: what can be, by name."""
        for name, value in wanted.items():
            if self.raw.get(name, value) != value:
                raise InputError(f"{self.where}: {name} is {self.raw[name]!r}; only {value!r} can be imported")


_OLD_BUFFERS = ("normalize_inputs", "normalize_targets", "unnormalize_outputs")


def read_folder(source: Path, family: str, steps: Collection[str]) -> Folder:
    """The folder of a policy of type `family`; steps: names of processor steps whose work is done here."""
    raw, where = read_config(source), str(source / "config.json")
    kind = raw.get("type", raw.get("model_type"))
    if kind != family:
        raise InputError(f"{where}: is of type {kind!r}, not {family}; pass the folder of a {family} policy of lerobot")
    path = weights_path(source)
    check_pixels(source, (0.5,) * 3, (0.5,) * 3)
    if path is None:
        raise InputError(f"{source}: has no weights (model.safetensors or its index); download them")
    before = read_steps(source / PREPROCESSOR, steps)
    after = read_steps(source / POSTPROCESSOR, steps)
    shown, written = (
        read_normalisers(source, name, found) for name, found in ((PREPROCESSOR, before), (POSTPROCESSOR, after))
    )
    if shown.get("ACTION") != written.get("ACTION"):
        raise InputError(
            f"{source}: {PREPROCESSOR} and {POSTPROCESSOR} normalise actions differently; save the policy again"
        )
    words = next((settings for name, settings, _ in before if name == "tokenizer_processor"), {})
    return Folder(
        source, raw, path, shown.get("STATE", Normaliser()), shown.get("ACTION", Normaliser()), words.get("max_length")
    )


Step = tuple[str, Mapping[str, Any], str | None]
"""Its name, its settings, and the file of its statistics."""


def read_steps(path: Path, known: Collection[str]) -> list[Step]:
    """All steps of a processor file; `known` are those whose work a family does itself, beside the common ones."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; download it, or if there is none, the policy was {_MIGRATE}")
    raw = read_json(path)
    listed = raw.get("steps") if isinstance(raw, dict) else None
    if not isinstance(listed, list) or not all(isinstance(step, dict) for step in listed):
        raise InputError(
            f"{path}: has no list of steps, as lerobot 0.5 and 0.6 write it; save the policy with one of them"
        )
    return [_step(step, known, path) for step in listed]


def _step(step: Mapping[str, Any], known: Collection[str], path: Path) -> Step:
    name, settings = step.get("registry_name") or step.get("class", "?"), step.get("config") or {}
    if name not in (*_PLAIN, *NORMALISERS, *_RELATIVE, *known):
        raise InputError(f"{path}: step {name!r} is not known; its work would be lost, so nothing was imported")
    if name in _RELATIVE and settings.get("enabled"):
        raise InputError(f"{path}: {name} is enabled; actions relative to the state cannot be imported")
    return str(name), settings, step.get("state_file")


# --- normalisers -----------------------------------------------------------------------------------------------


def read_normalisers(source: Path, name: str, steps: Iterable[Step]) -> dict[str, Normaliser]:
    """STATE, ACTION -> their normaliser, of the steps of the file `name`."""
    found: dict[str, Normaliser] = {}
    for step, settings, file in steps:
        if step in NORMALISERS:
            where = f"{source / name}: {step}"
            statistics = _read_statistics(source, file, where)
            modes = modes_of(settings)
            for feature, kind in _features(settings).items():
                made = _normaliser(
                    modes.get(kind, "IDENTITY"), feature, statistics, float(settings.get("eps", 1e-8)), where
                )
                if kind == "VISUAL" and len(made):
                    raise InputError(f"{where}: normalises pictures by {modes[kind]}; only IDENTITY can be imported")
                found[kind] = made
    return found


def modes_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """VISUAL, STATE, ACTION -> how a normaliser's step treats it."""
    return {_upper(kind): _upper(mode) for kind, mode in (settings.get("norm_map") or {}).items()}


def _features(settings: Mapping[str, Any]) -> dict[str, str]:
    """The features that a step treats, and what they are; an action always is one, whether or not it is listed."""
    listed = {name: _upper(each.get("type", "")) for name, each in (settings.get("features") or {}).items()}
    return listed if "ACTION" in listed.values() else {**listed, "action": "ACTION"}


def _upper(word: Any) -> str:
    return str(word).upper().split(".")[-1]


def _read_statistics(source: Path, file: str | None, where: str) -> dict[str, Tensor]:
    if file is None:  # a base model without data of its own: lerobot then leaves numbers as they are
        return {}
    if Path(file).name != file or not (source / file).is_file():
        raise InputError(f"{where}: its statistics {file!r} are not in the folder; download them")
    return read_tensors(source / file)


def _normaliser(mode: str, feature: str, statistics: Mapping[str, Tensor], eps: float, where: str) -> Normaliser:
    if mode == "IDENTITY" or not any(name.rpartition(".")[0] == feature for name in statistics):
        return Normaliser()
    if mode not in _STATISTICS:
        raise InputError(f"{where}: normalises {feature} by {mode}; known are IDENTITY, {', '.join(_STATISTICS)}")
    for name in _STATISTICS[mode]:
        if f"{feature}.{name}" not in statistics:
            raise InputError(
                f"{where}: {mode} of {feature} needs {name}, which its statistics lack; save the policy again"
            )
    first, second = (statistics[f"{feature}.{name}"].double() for name in _STATISTICS[mode])
    if mode == "MEAN_STD":
        offset, scale = first, second
    else:  # to -1 and 1
        offset, scale = (first + second) / 2, (second - first) / 2
    if first.shape != second.shape or first.dim() != 1 or not bool((scale >= 0).all() & offset.isfinite().all()):
        raise InputError(f"{where}: statistics of {feature} are no ranges of its channels; save the policy again")
    return Normaliser(tuple(offset.tolist()), tuple(torch.where(scale > 0, scale, eps).tolist()))


# --- what drives -----------------------------------------------------------------------------------------------


def pose_action(folder: Folder, horizon: int | None, dim: int) -> tuple[ActionSpec, list[str]]:
    """The policy's action as poses, and what was assumed: three channels are x, y, heading, four have (cos, sin).

    A robot's other channels become padding of a network that is to learn driving, without their normaliser.
    """
    shapes = [
        each.get("shape")
        for each in (folder.raw.get("output_features") or {}).values()
        if _upper(each["type"]) == "ACTION"
    ]
    channels = shapes[0][-1] if shapes and shapes[0] else 0
    steps = horizon or required(folder.raw, "chunk_size", int, folder.where)
    notes = [] if horizon else [f"plans have the checkpoint's {steps} steps; for driving import with --horizon 8"]
    is_pose = channels in (3, 4)
    heading: Literal["angle", "cos_sin"] = "angle" if channels == 3 else "cos_sin"
    offset, scale = (folder.action.offset, folder.action.scale) if is_pose else ((), ())
    if is_pose:
        notes.append(f"its {channels} channels are read as x, y, {'heading' if channels == 3 else 'cos and sin of it'}")
    elif len(folder.action):
        notes.append(
            f"its {channels} channels are no poses: their normaliser was left out; train with fit_action: true"
        )
    return ActionSpec(steps, dim, heading=heading, offset=offset, scale=scale, is_padded=True), notes


def ego_state(folder: Folder) -> tuple[dict[str, tuple[float, ...]], list[str]]:
    """state_offset and state_scale for the ego history (12 numbers), where that is the policy's state; and a note."""
    if len(folder.state) == 12:
        return {"state_offset": folder.state.offset, "state_scale": folder.state.scale}, []
    if not len(folder.state):
        return {}, []
    return {}, [f"its state has {len(folder.state)} numbers, the ego history 12: its normaliser was left out"]
