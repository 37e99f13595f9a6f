"""Contexts on disk: what the frozen encoder says about each scene, computed once instead of once a pass.

    contexts.json        which backbone, scenes and pictures, dtype, shapes, scenes per shard
    00000.safetensors …  a shard's scenes in the order of the scene table, read row by row from a memory map

`DrivingData(contexts=FOLDER)` makes the folder on first use and reads it from then on; `dipole-vla contexts` makes it
ahead of a job. Shards are shared out between ranks, and a killed run resumes where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from dipole_vla.backbones import weights
from dipole_vla.backbones.base import Context, Observation
from dipole_vla.data.batches import batches
from dipole_vla.data.pictures import began, pictures_entry
from dipole_vla.data.tables import SceneTable
from dipole_vla.progress import bar, console
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, is_made, making, read_json, stamp, verify_listed, write_json
from navsim_adapter.foundation.words import counted

ContextDtype = Literal["model", "float32", "bfloat16"]

INDEX = "contexts.json"
SHARD_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Encoder:
    """The frozen encoder as the cache sees it.

    encode: observation tensors of B scenes -> their context, adapters off. processor: scene row to observation.
    fingerprint: of the base weights, so that no other model reads what this one wrote.
    """

    encode: Callable[[Observation], Context]
    processor: Any
    fingerprint: str
    device: torch.device


@dataclass(frozen=True)
class Ranks:
    """Who shares the work; `wait` returns when every rank has come to it."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], Any] = lambda: None

    @property
    def leads(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Shape:
    """What lies in a folder of contexts. tensors: name -> shape of one scene; dtype as stored (integers stay)."""

    scenes: int
    per_shard: int
    bytes_per_scene: int
    tensors: Mapping[str, list[int]]

    @property
    def shards(self) -> int:
        return -(-self.scenes // self.per_shard)

    def rows(self, shard: int) -> range:
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.scenes))


class ContextStore:
    """Reads single scenes from a finished folder; each process opens the shards for itself."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        verify_listed(self.folder)
        self.shape = _shape_of(self.folder)
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.shape.scenes

    def __getitem__(self, scene: int) -> dict[str, Tensor]:
        """Tensors of one scene without batch axis, by its position in the scene table."""
        shard, row = divmod(scene, self.shape.per_shard)
        if shard not in self._open:
            self._open[shard] = safe_open(_shard(self.folder, shard), framework="pt")
        return {name: self._open[shard].get_slice(name)[row : row + 1][0] for name in self.shape.tensors}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def make_contexts(
    folder: str | Path,
    encoder: Encoder,
    scenes: SceneTable,
    dtype: ContextDtype = "model",
    batch_size: int = 32,
    ranks: Ranks | None = None,
) -> ContextStore:
    """The contexts of `scenes` in `folder`, read if they are there, else made; size and free disk are said first."""
    folder, ranks = Path(folder), ranks or Ranks()
    made_by = made_of(folder, encoder, scenes, dtype)
    if is_made(folder, made_by, passing=(INDEX,), option="folder"):
        return ContextStore(folder)
    held = making(folder, made_by, wait=True, passing=(INDEX,)) if ranks.leads else nullcontext(False)
    with held as is_open:  # not for a rank that does not lead, nor where another run has just finished it
        if is_open:
            if not (folder / INDEX).is_file():
                write_json(folder / INDEX, {**made_by, "shape": asdict(_measure(encoder, scenes, dtype, batch_size))})
            _announce(folder, _shape_of(folder))
        ranks.wait()
        is_made(folder, made_by, option="folder")  # another machine may see other pictures than the one that began
        _write_shards(folder, encoder, scenes, dtype, batch_size, ranks)
        ranks.wait()
        if is_open:
            finish(folder, made_by)
        ranks.wait()
    return ContextStore(folder)


def made_of(folder: Path, encoder: Encoder, scenes: SceneTable, dtype: ContextDtype) -> dict[str, Any]:
    before = began(folder)
    cameras = {"cameras": list(encoder.processor.cameras)}
    return {
        "command": "contexts",
        "backbone_fingerprint": encoder.fingerprint,
        "scenes": stamp(scenes.folder),
        "dtype": dtype,
        **(cameras if before is None or "cameras" in before else {}),  # not so in folders of before
        **pictures_entry(scenes.pictures, before, folder),
    }


def _shape_of(folder: Path) -> Shape:
    return weights.record_from(Shape, read_json(folder / INDEX)["shape"], f"{folder / INDEX}: shape")


def _measure(encoder: Encoder, scenes: SceneTable, dtype: ContextDtype, batch_size: int) -> Shape:
    """Sizes, from the first scene."""
    first = next(_encoded(encoder, scenes, range(1), 1, dtype))
    size = sum(tensor.nbytes for tensor in first.values())
    per_shard = max(SHARD_BYTES // max(size, 1) // batch_size, 1) * batch_size
    return Shape(len(scenes), per_shard, size, {name: list(tensor.shape[1:]) for name, tensor in first.items()})


def _announce(folder: Path, shape: Shape) -> None:
    """Say how much will be written, or that it does not fit."""
    missing = sum(len(shape.rows(i)) for i in range(shape.shards) if not _shard(folder, i).is_file())
    wanted, free = missing * shape.bytes_per_scene, shutil.disk_usage(folder).free
    size = f"{counted(missing, 'scene')} x {_human(shape.bytes_per_scene)} = {_human(wanted)}"
    if wanted > 0.98 * free:
        raise InputError(
            f"{folder}: contexts need {size}, {_human(free)} are free; choose another disk, dtype bfloat16, or train "
            "without data.contexts"
        )
    console.print(f"contexts: {size} to {folder} ({_human(free)} free)", markup=False)


def _write_shards(
    folder: Path, encoder: Encoder, scenes: SceneTable, dtype: ContextDtype, batch_size: int, ranks: Ranks
) -> None:
    shape = _shape_of(folder)
    own = [i for i in range(ranks.rank, shape.shards, ranks.world) if not _shard(folder, i).is_file()]
    with bar("contexts", sum(len(shape.rows(i)) for i in own)) as progress:
        for shard in own:
            parts: list[dict[str, Tensor]] = []
            for part in _encoded(encoder, scenes, shape.rows(shard), batch_size, dtype):
                parts.append(part)
                progress.advance(len(next(iter(part.values()))))
            weights.write_tensors(
                _shard(folder, shard), {name: torch.cat([part[name] for part in parts]) for name in shape.tensors}
            )


def _encoded(encoder: Encoder, scenes: SceneTable, positions: range, batch_size: int, dtype: ContextDtype):
    """Contexts of the scenes at `positions` as plain tensors on the CPU, batch by batch."""
    for batch in batches(scenes, positions, encoder.processor, batch_size, encoder.device):
        with torch.no_grad():
            context = encoder.encode(batch.observation)
        for name, tensor in context.tensors.items():
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"contexts: {name} is not finite on tokens {', '.join(batch.tokens)}; check these scenes"
                )
        yield {name: _stored(tensor, dtype).cpu() for name, tensor in context.tensors.items()}


def _stored(tensor: Tensor, dtype: ContextDtype) -> Tensor:
    return tensor if dtype == "model" or not tensor.is_floating_point() else tensor.to(getattr(torch, dtype))


def _shard(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.safetensors"


def _human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
