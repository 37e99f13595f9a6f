"""Reading weights that others published: folders, safetensors, torch files. Tensors only; no code of theirs runs.

Which names a family expects is in its own import module. An adapter that nobody applies would be lost in silence, so
one beside the weights, below their folder or among them is refused here, for every family.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dipole_vla.backbones.weights import read_json, read_tensors
from navsim_adapter.foundation.errors import InputError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ADAPTER_FILE = re.compile(r"(?!.*merged)(.*[._-])?(adapters?|lora)([._-].*)?", re.IGNORECASE)
_ADAPTER_KEY = re.compile(r"(^|\.)(lora_[A-Za-z]\w*|base_layer|modules_to_save)(\.|$)|(^|\.)lora_magnitude_vector")
_MERGE = "merge it into its base first (PEFT: merge_and_unload, save_pretrained) and pass that folder"


def weights_path(folder: Path, applied: Collection[str] = ()) -> Path | None:
    """The first of WEIGHTS in `folder`; None if it has none. applied: as in `refuse_adapters`."""
    refuse_adapters(folder, applied)
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def refuse_adapters(place: Path, applied: Collection[str] = ()) -> None:
    """InputError if files of an adapter (PEFT's names and similar ones) lie in a folder or below it, or beside a file.

    applied: folders below it whose adapters the caller reads himself.
    """
    folder = place if place.is_dir() else place.parent
    for inside, folders, files in os.walk(folder):
        below = Path(inside).relative_to(folder)
        if folder != place or len(below.parts) == 4:
            folders.clear()
        found = sorted(name for name in files if _is_adapter(name) and name != place.name)
        if found and below.as_posix() not in applied:
            name = (below / found[0]).as_posix()
            if any(path.suffix in _SUFFIXES and not _is_adapter(path.name) for path in folder.iterdir()):
                raise InputError(f"{folder}: an adapter lies with the weights ({name}) and would be lost; {_MERGE}")
            raise InputError(f"{folder}: holds an adapter alone ({name}), without its base; {_MERGE}")


def _is_adapter(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return name == "adapter_config.json" or (suffix in _SUFFIXES and _ADAPTER_FILE.fullmatch(stem) is not None)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, of the shards an index names, or of a torch file, of a model without adapters."""
    refuse_adapters(path)
    return without_adapters(read_tensors_of(path), str(path))


def without_adapters(file: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same tensors; InputError if some are an adapter's."""
    found = [name for name in file if _ADAPTER_KEY.search(name)]
    if len(found) == len(file) and found:
        raise InputError(f"{where}: holds an adapter alone ({found[0]}), without its base; {_MERGE}")
    if found:
        raise InputError(f"{where}: an adapter lies among the weights ({found[0]}) and would be lost; {_MERGE}")
    return file


def read_tensors_of(path: Path) -> dict[str, Tensor]:
    """As `read_weights`, adapters and all: for those who apply them."""
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
        refuse_adapters(folder)  # where it is one, that says more
        raise InputError(f"{path}: no such file; pass the published folder as it was downloaded")
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must hold an object, got {type(raw).__name__}; download the folder again")
    return raw


def check_pixels(folder: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """InputError if the folder's image processor, where it has one, scales pixels otherwise than by these."""
    for path in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        raw = read_json(path) if path.is_file() else {}
        raw = raw.get("image_processor", raw) if isinstance(raw, dict) else {}
        wanted: dict[str, Any] = {"image_mean": list(mean), "image_std": list(std), "rescale_factor": 1 / 255}
        wanted |= {"do_normalize": True, "do_rescale": True}
        for name, value in wanted.items():
            if raw.get(name) is not None and not _are_near(raw[name], value):
                raise InputError(f"{path}: {name} must be {value}, as pictures are shown here, got {raw[name]!r}")


def _are_near(found: Any, wanted: Any) -> bool:
    try:
        return bool(np.allclose(np.asarray(found, dtype=float), np.asarray(wanted, dtype=float), rtol=1e-3, atol=0))
    except (TypeError, ValueError):  # no numbers, or not as many
        return False


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


def read_torch(path: Path) -> Mapping[str, Any]:
    """A torch file's mapping, of plain values alone."""
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
    if not isinstance(raw, Mapping):
        raise InputError(f"{path}: holds a {type(raw).__name__}; pass a file of named tensors")
    return raw


def _read_torch(path: Path) -> dict[str, Tensor]:
    """A torch file's tensors: the file itself, or its `state_dict` or `model` entry (Lightning, trainers)."""
    raw = read_torch(path)
    for entry in ("state_dict", "model"):
        if isinstance(raw.get(entry), Mapping):
            _refuse_other_entries(raw, entry, path)
            raw = raw[entry]
            break
    for name, value in raw.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: {name!r} is a {type(value).__name__}; pass a file of named tensors")
    return dict(raw)


def _refuse_other_entries(raw: Mapping[str, Any], chosen: str, path: Path) -> None:
    """An adapter that a trainer keeps beside the model in the same file."""
    for name, entry in raw.items():
        keys = [str(key) for key in entry] if isinstance(entry, Mapping) and name != chosen else []
        if any(_ADAPTER_KEY.search(f"{key}.") and isinstance(entry[key], Tensor) for key in keys):
            raise InputError(f"{path}: an adapter lies beside {chosen!r} ({name!r}) and would be lost; {_MERGE}")


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
