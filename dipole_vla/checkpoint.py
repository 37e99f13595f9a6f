"""Reading and writing checkpoint folders, strictly: configuration as typed records, weights as safetensors.

Nothing here knows a model family. A key that is missing, unexpected or of another shape is an InputError that
names it; nothing is loaded partly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from navsim_adapter.errors import InputError, did_you_mean
from navsim_adapter.files import atomic_path, read_json, write_json

__all__ = [
    "assign_strict",
    "base_state",
    "check_names",
    "fingerprint",
    "load_strict",
    "read_json",
    "read_record",
    "read_tensors",
    "record_from",
    "write_json",
    "write_tensors",
]

T = TypeVar("T")


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """State of `model` under its own names, whether or not PEFT adapters are attached; theirs are left out."""
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if "lora_" not in name
    }


def fingerprint(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and values of `state`, and over `facts`."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """A safetensors file, aside and renamed."""
    with atomic_path(path) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, aside, {"format": "pt"})


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; pass the folder that save_pretrained wrote")
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as problem:
        raise InputError(f"{path}: cannot be read as safetensors ({problem}); copy or make it again") from problem


def check_names(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """InputError naming the first unexpected, missing or misshapen key of `found` against `wanted`."""
    for name in found:
        if name not in wanted:
            others = len(set(found) - set(wanted)) - 1
            more = f" and {others} more" if others else ""
            hint = did_you_mean(name, sorted(set(wanted) - set(found)))
            raise InputError(
                f"{where}: unexpected key {name}{more}{hint}; this file is of another model or configuration"
            )
    for name, tensor in wanted.items():
        if name not in found:
            others = len(set(wanted) - set(found)) - 1
            more = f" and {others} more" if others else ""
            raise InputError(f"{where}: missing key {name}{more}; this file is of another model or configuration")
        if found[name].shape != tensor.shape:
            raise InputError(
                f"{where}: {name} has shape {list(found[name].shape)}, the configuration asks for "
                f"{list(tensor.shape)}; pass the config.json that belongs to these weights"
            )


def load_strict(model: nn.Module, path: Path, device: str | torch.device = "cpu") -> None:
    """Give `model` (usually on the meta device) the tensors of a file, which become its parameters themselves."""
    assign_strict(model, read_tensors(path, device), str(path))


def assign_strict(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """As `load_strict`, from tensors in memory; each is cast to the dtype the model declares."""
    wanted = model.state_dict()
    check_names(tensors, wanted, where)
    model.load_state_dict({name: tensors[name].to(wanted[name].dtype) for name in wanted}, strict=True, assign=True)


def read_record(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """A JSON object with exactly `keys`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; pass the folder of a saved checkpoint")
    raw, keys = read_json(path), list(keys)
    if not isinstance(raw, dict) or ("family" in keys and "family" not in raw):
        raise InputError(f"{path}: not a checkpoint of this program (no 'family'); import the published file first")
    for name in raw:
        if name not in keys:
            raise InputError(f"{path}: unknown field {name!r}{did_you_mean(name, keys)}; remove it")
    for name in keys:
        if name not in raw:
            raise InputError(f"{path}: field {name!r} is missing; write the checkpoint again")
    return raw


def record_from(cls: type[T], raw: Any, where: str) -> T:
    """The frozen dataclass `cls` with the fields of `raw`; unknown fields and wrong types are InputErrors."""
    if not isinstance(raw, Mapping):
        raise InputError(f"{where}: must be a mapping, got {type(raw).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in raw.items():
        if name not in fields:
            raise InputError(f"{where}.{name}: unknown field{did_you_mean(name, list(fields))}; remove it")
        values[name] = _tupled(value)
        _check_type(values[name], fields[name].default, f"{where}.{name}")
    return cls(**values)


def _check_type(value: Any, default: Any, where: str) -> None:
    kind = type(default)
    if kind not in (bool, int, float, str, tuple) or isinstance(value, kind):
        return
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return
    raise InputError(f"{where}: must be {kind.__name__}, got {value!r}")


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value
