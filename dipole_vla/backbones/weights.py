"""Reading and writing checkpoint folders, strictly: configuration as typed records, weights as safetensors.

Nothing here knows a model family. A key that is missing, unexpected or of another shape is an InputError that
names it; nothing is loaded partly. Weights are one file, or shards with an index beside them in the layout of
the hub (`model.safetensors.index.json`); either is read tensor by tensor, so a model is in memory once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.files import atomic_path, read_json, write_json

__all__ = [
    "assign_strict",
    "base_state",
    "check_default_dtype",
    "check_names",
    "checked_fields",
    "fingerprint",
    "float32_by_default",
    "load_strict",
    "read_json",
    "read_record",
    "read_tensors",
    "record_from",
    "write_json",
    "write_shards",
    "write_tensors",
]

MAX_SHARD_BYTES = 5_000_000_000  # the hub's own default

T = TypeVar("T")


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """State of `model` under its own names, whether or not PEFT adapters are attached; theirs are left out."""
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if "lora_" not in name
    }


def fingerprint(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and values of `state`, and over `facts`; meta tensors have no values."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """A safetensors file, aside and renamed."""
    with atomic_path(path) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, aside, {"format": "pt"})


def write_shards(path: Path, state: Mapping[str, Tensor], max_bytes: int = MAX_SHARD_BYTES) -> None:
    """`path` itself if `state` fits into `max_bytes`; else numbered shards beside it and `<path>.index.json`, last.

    A tensor larger than `max_bytes` is a shard by itself. Only one shard at a time is brought to the CPU.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        if shards[-1] and filled + tensor.nbytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    names = [f"{path.stem}-{i + 1:05d}-of-{len(shards):05d}{path.suffix}" for i in range(len(shards))]
    if len(shards) == 1:
        names = [path.name]
    for name, shard in zip(names, shards):
        write_tensors(path.parent / name, shard)
    index = _index_of(path)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in state.values())
        places = {key: name for name, shard in zip(names, shards) for key in shard}
        write_json(index, {"metadata": {"total_size": total}, "weight_map": places})
    for stale in {path, index, *path.parent.glob(f"{path.stem}-*-of-*{path.suffix}")}:
        if stale.name not in names and (stale != index or len(shards) == 1):
            stale.unlink(missing_ok=True)


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; pass the folder that save_pretrained wrote")
    _check_device(device)
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
    """Give `model` (usually on the meta device) the tensors of a file or of its shards, which become its parameters.

    Everything is checked before the first tensor is read; then each is read, cast to the dtype the model declares
    and assigned, so neither the model nor a dtype is ever in memory twice.
    """
    _check_device(device)
    check_default_dtype()
    places, wanted = _places(path), model.state_dict()
    check_names(_shapes(path, places), wanted, str(path))
    with torch.no_grad():
        for file, names in places.items():
            with _opened(file, device) as opened:
                for name in names:
                    owner, _, leaf = name.rpartition(".")
                    module = model.get_submodule(owner)
                    tensor = opened.get_tensor(name).to(wanted[name].dtype)
                    module.load_state_dict({leaf: tensor}, strict=False, assign=True)


def check_default_dtype() -> None:
    """InputError where torch makes new tensors in another type than float32: a model would be cast unasked."""
    found = torch.get_default_dtype()
    if found != torch.float32:
        name = str(found).removeprefix("torch.")
        raise InputError(
            f"torch.set_default_dtype: is {name}, in which weights would be rounded; models are read and made in "
            "float32: set that first, and give a precision to the trainer"
        )


def _check_device(device: str | torch.device) -> None:
    """InputError where torch cannot use `device`: a reader of weights would blame the file."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:  # the latter in a torch built without it
        reason = str(problem).splitlines()[0].split(". ")[0][:100]
        raise InputError(f"--device: {str(device)!r} cannot be used here ({reason}); give auto or cpu") from problem


def _index_of(path: Path) -> Path:
    return path.with_name(path.name + ".index.json")


def _places(path: Path) -> dict[Path, list[str]]:
    """Files that together are the checkpoint `path` -> the keys to take from each."""
    if path.is_file():
        with _opened(path) as opened:
            return {path: list(opened.keys())}
    index = _index_of(path)
    if not index.is_file():
        raise InputError(f"{path}: no such file; pass the folder that save_pretrained wrote")
    raw = read_json(index)
    mapping = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
        raise InputError(f"{index}: no 'weight_map' of keys to files; copy the checkpoint again")
    places: dict[Path, list[str]] = {}
    for key, name in mapping.items():
        if Path(name).name != name:
            raise InputError(f"{index}: {key} is placed in {name!r}, which is not a file of this folder; copy it again")
        places.setdefault(path.parent / name, []).append(key)
    return places


def _shapes(path: Path, places: Mapping[Path, list[str]]) -> dict[str, Tensor]:
    """Every tensor of the files as a meta tensor: keys and shapes without data. A shard must hold what is indexed."""
    found: dict[str, Tensor] = {}
    for file, names in places.items():
        with _opened(file) as opened:
            held = list(opened.keys())
            for name in names:
                if name not in held:
                    raise InputError(
                        f"{file}: missing key {name}, which {_index_of(path).name} places there; copy again"
                    )
            for name in held:
                found[name] = torch.empty(opened.get_slice(name).get_shape(), device="meta")
    extra = set(found).difference(*places.values()) if places else set()
    if extra:
        raise InputError(f"{path}: unexpected key {min(extra)}, not in {_index_of(path).name}; copy the folder again")
    return found


def _opened(path: Path, device: str | torch.device = "cpu"):
    if not path.is_file():
        raise InputError(f"{path}: no such file; pass the folder that save_pretrained wrote")
    try:
        return safe_open(path, framework="pt", device=str(device))
    except (SafetensorError, OSError) as problem:
        raise InputError(f"{path}: cannot be read as safetensors ({problem}); copy or make it again") from problem


def assign_strict(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """As `load_strict`, from tensors in memory; each is cast to the dtype the model declares."""
    check_default_dtype()
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
    return cls(**checked_fields(cls, raw, where))


def checked_fields(cls: type, raw: Any, where: str) -> dict[str, Any]:
    """`raw` as arguments of the dataclass `cls`, lists as tuples; InputError for an unknown field or a wrong type."""
    if not isinstance(raw, Mapping):
        raise InputError(f"{where}: must be a mapping, got {type(raw).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for name, value in raw.items():
        if name not in fields:
            raise InputError(f"{where}.{name}: unknown field{did_you_mean(name, list(fields))}; remove it")
        values[name] = _tupled(value)
        _check_type(values[name], fields[name].default, f"{where}.{name}")
    return values


def _check_type(value: Any, default: Any, where: str) -> None:
    kind = type(default)
    if kind not in (bool, int, float, str, tuple) or isinstance(value, kind):
        return
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return
    raise InputError(f"{where}: must be {kind.__name__}, got {value!r}")


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Schedules, noise and actions in float32 under a trainer that makes half precision the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
