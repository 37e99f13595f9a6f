"""Reading weights that others published: folders, safetensors, torch files. Tensors only; no code of theirs runs.

Which names a family expects is in its own import module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dipole_vla.checkpoint import read_json, read_tensors
from navsim_adapter.errors import InputError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def weights_path(folder: Path) -> Path | None:
    """The first of WEIGHTS in `folder`; None if it has none."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, of the shards an index names, or of a torch file."""
    if path.name.endswith(".index.json"):
        shards = sorted(set(read_json(path)["weight_map"].values()))
        return {name: tensor for shard in shards for name, tensor in read_tensors(path.parent / shard).items()}
    if path.suffix == ".safetensors":
        return read_tensors(path)
    return _read_torch(path)


def read_config(folder: Path) -> dict[str, Any]:
    """`folder`/config.json, a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; pass the published folder as it was downloaded")
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must hold an object, got {type(raw).__name__}; download the folder again")
    return raw


def field(raw: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """One required field of a published configuration, of the given type."""
    if name not in raw:
        raise InputError(f"{where}: field {name!r} is missing; pass the config.json that belongs to these weights")
    value = float(raw[name]) if kind is float and type(raw[name]) is int else raw[name]
    if type(value) is not kind:
        raise InputError(f"{where}: {name} must be {kind.__name__}, got {value!r}; correct the file")
    return value


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer in `folder`, without remote code; None if it has no tokenizer files."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return None
    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        raise InputError(f"{folder}: its tokenizer cannot be read ({problem}); pass --tokenizer FOLDER") from problem
    if not isinstance(found, PreTrainedTokenizerFast):
        raise InputError(f"{folder}: {type(found).__name__} is no fast tokenizer; save it with a tokenizer.json")
    return found


def _read_torch(path: Path) -> dict[str, Tensor]:
    """A torch file's tensors: the file itself, or its `state_dict` or `model` entry (Lightning, trainers)."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_globals(_stand_ins(path)):
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # the unpickler raises what it likes on a file of something else
        reason = str(problem).split("\n")[0][:200]
        raise InputError(
            f"{path}: cannot be read as plain tensors ({reason}); in the environment that wrote it, save its "
            "state_dict alone"
        ) from problem
    for entry in ("state_dict", "model"):
        if isinstance(raw, Mapping) and isinstance(raw.get(entry), Mapping):
            raw = raw[entry]
            break
    if not isinstance(raw, Mapping):
        raise InputError(f"{path}: holds a {type(raw).__name__}; pass a file of named tensors")
    for name, value in raw.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: {name!r} is a {type(value).__name__}; pass a file of named tensors")
    return dict(raw)


_INERT = ("omegaconf", "lightning", "lightning_fabric", "pytorch_lightning", "navsim", "nuplan", "recogdrive", "numpy")
"""Packages whose objects a trainer puts beside the weights (settings, callbacks)."""


class _Inert:
    """Stands where a file names a class of `_INERT`: takes anything, does nothing; no code of that package runs."""

    def __init__(self, *values: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_ins(path: Path) -> list[Any]:
    """(class, name) for every class of `_INERT` that the file names; other foreign names stay refused."""
    try:
        foreign = get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not a torch archive: `torch.load` says what is wrong
        return []
    return [(_Inert, name) for name in foreign if name.split(".")[0] in _INERT]
