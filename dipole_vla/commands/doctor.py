"""`dipole-vla doctor`: what a long job would trip over, said before it starts; one line each, exit code 1 if any fails.

Without a recipe the machine, with one also its data, its disk space and its ranks. Started under srun or torchrun every
rank looks at its own machine, rank 0 speaks for all that is well, and all ranks add a number together over the network.
Checks only look: nothing is built, moved or downloaded.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from dipole_vla.commands import early
from dipole_vla.commands.recipe import kind_of, overridden, raw_recipe
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.exits import Unwell
from navsim_adapter.foundation.option_checks import local_path
from navsim_adapter.foundation.words import counted

Level = Literal["ok", "note", "FAIL"]
LOOKED_AT = 64  # scenes of a scoring cache
PICTURED = 2000  # scenes whose pictures are looked for
SLOW_SYNC = 0.1  # s for a small synced write; a checkpoint makes a few
REACH = timedelta(seconds=90)


@dataclass(frozen=True)
class Finding:
    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5}{self.about:<13}{' '.join(self.text.split())}"


@dataclass(frozen=True)
class Case:
    """What is looked at: a recipe (empty for the machine alone), where its output goes, and what names it to `fit`."""

    recipe: dict[str, Any]
    out: Path
    words: Sequence[str] = ()

    def arguments(self, section: str) -> dict[str, Any]:
        """The keys of `model`, `data` or `scorer`, or of the whole recipe (collect, evaluate)."""
        part = self.recipe.get(section)
        return dict(part.get("init_args") or {}) if isinstance(part, dict) else {}

    @property
    def trainer(self) -> dict[str, Any]:
        return dict(self.recipe.get("trainer") or {})


def doctor(config: Path | None = None, out: Path | None = None, arguments: Sequence[str] = ()) -> None:
    """Check GPUs, network, DeepSpeed, storage, variables, data and disk space; exit code 1 if a check fails.

    Args:
        config: recipe whose data, devices and disk space are checked too.
        out: folder whose file system is looked at; default is the recipe's, or the current one.
        arguments: what the recipe's command is given beside it, as a list; on the command line: after --.
    """
    recipe = overridden(raw_recipe(config), arguments) if config else {}
    place = local_path("out", out or recipe.get("out") or ".")
    case = Case(recipe, place, ["--config", str(config), *arguments])
    findings = [finding for check in CHECKS for finding in _findings(check, case)]
    rank, host = _rank(), socket.gethostname()
    for finding in findings:
        if rank == 0 or finding.level == "FAIL":
            print(finding if rank == 0 else f"{finding} (rank {rank}, {host})", flush=True)
    failed = sum(finding.level == "FAIL" for finding in findings)
    if failed:
        raise Unwell(f"doctor: {failed} of {len(findings)} checks failed on {host}")


def _findings(check: Callable[[Case], Iterator[Finding]], case: Case) -> list[Finding]:
    name = check.__name__.strip("_").replace("_", " ")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(check(case))
    except Exception as problem:  # a check that breaks is a finding, not the end of the others
        return [Finding("FAIL", name, f"{type(problem).__name__}: {problem}")]


# -- the machine -------------------------------------------------------------------------------------------------------


def _software(case: Case) -> Iterator[Finding]:
    import lightning
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield Finding("ok", "software", f"torch {torch.__version__} ({build}), lightning {lightning.__version__}")


def _gpus(case: Case) -> Iterator[Finding]:
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = {f"{p.name} {p.total_memory / 2**30:.0f} GiB" for p in map(torch.cuda.get_device_properties, range(found))}
    on_cpu = case.trainer.get("accelerator") == "cpu"
    wanted = case.trainer.get("devices")
    if found == 0:
        needs = bool(case.trainer) and not on_cpu
        yield Finding("FAIL" if needs else "note", "GPUs", "none visible" + ("; the recipe is not for a CPU" * needs))
    elif not on_cpu and isinstance(wanted, int) and wanted > found:
        yield Finding("FAIL", "GPUs", f"{found} visible, trainer.devices is {wanted}")
    else:
        yield Finding("ok", "GPUs", f"{found} x {', '.join(sorted(names))}")
    if found and str(case.trainer.get("precision", "")).startswith("bf16") and not torch.cuda.is_bf16_supported():
        yield Finding("FAIL", "GPUs", f"no bfloat16 on them, trainer.precision is {case.trainer['precision']}")


def _ranks(case: Case) -> Iterator[Finding]:
    """All ranks of this start add one: every machine reaches every other, with NCCL where there are GPUs."""
    import torch
    import torch.distributed as dist

    environment = _environment()
    if environment is None:
        yield Finding("ok", "ranks", "one process; start it with srun or torchrun to check the network between ranks")
        return
    rank, world = environment.global_rank(), environment.world_size()
    address = f"{environment.main_address}:{environment.main_port}"
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    device = torch.device("cuda", environment.local_rank()) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    started = time.monotonic()
    dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=world, timeout=REACH)
    try:
        one = torch.ones(1, device=device)
        dist.all_reduce(one)
        answered = int(one.item())
    finally:
        dist.destroy_process_group()
    took = time.monotonic() - started
    level: Level = "ok" if answered == world else "FAIL"
    yield Finding(level, "ranks", f"{answered} of {world} answer over {backend} at {address} in {took:.1f} s")


def _deepspeed(case: Case) -> Iterator[Finding]:
    strategy = case.trainer.get("strategy")
    wanted = "deepspeed" in str(strategy).lower()
    try:
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed
    except ImportError as problem:
        text = f"cannot be imported ({problem}); pip install 'dipole-vla[deepspeed]'"
        yield Finding("FAIL" if wanted else "note", "DeepSpeed", text)
        return
    compiler = next((name for name in ("nvcc", "g++", "c++") if shutil.which(name)), None)
    text = f"{deepspeed.__version__}; AdamW is torch's, no op has to be built; compiler on PATH: {compiler or 'none'}"
    yield Finding("ok", "DeepSpeed", text)


def _variables(case: Case) -> Iterator[Finding]:
    shown = []
    for name in ("OPENSCENE_DATA_ROOT", "NUPLAN_MAPS_ROOT"):
        value = os.environ.get(name)
        if value and not Path(value).is_dir():
            yield Finding("FAIL", "variables", f"{name}={value}: no such folder")
        shown.append(f"{name} {'set' if value else 'not set'}")
    for name in ("OMP_NUM_THREADS", "MASTER_ADDR", "NCCL_SOCKET_IFNAME", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE"):
        if name in os.environ:
            shown.append(f"{name}={os.environ[name]}")
    yield Finding("ok", "variables", ", ".join(shown))


def _storage(case: Case) -> Iterator[Finding]:
    """A small synced write, as a checkpoint's, and a lock, on the file system of the output."""
    from navsim_adapter.foundation.files import only_writer, write_bytes

    folder = _existing(case.out)
    probe = folder / f".doctor-{socket.gethostname()}-{os.getpid()}"
    times = []
    try:
        with only_writer(probe):
            for _ in range(5):
                started = time.monotonic()
                write_bytes(probe / "probe", b"x" * 4096)
                times.append(time.monotonic() - started)
    except (OSError, InputError) as problem:
        yield Finding("FAIL", "storage", f"{folder}: {problem}")
        return
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    took = statistics.median(times)
    level: Level = "ok" if took < SLOW_SYNC else "note"
    yield Finding(level, "storage", f"{folder}: a synced 4 kB write takes {1000 * took:.1f} ms, locks work")


# -- the recipe --------------------------------------------------------------------------------------------------------


def _recipe(case: Case) -> Iterator[Finding]:
    """Keys and values of a training, as `fit` checks them before it starts."""
    if kind_of(case.recipe) != "fit":
        return
    try:
        early.check(case.words)
    except InputError as problem:
        yield Finding("FAIL", "recipe", str(problem))
    else:
        yield Finding("ok", "recipe", f"{case.words[1]}: its keys are those of fit")


def _inputs(case: Case) -> Iterator[Finding]:
    """Folders of earlier stages are finished; what is beside them is where they say."""
    from navsim_adapter.foundation.files import verify_listed

    kind = str((case.recipe.get("model") or {}).get("class_path"))
    if kind.endswith(("DipoleModule", "CriticModule")) and not case.arguments("data").get("candidates"):
        yield Finding("FAIL", "data", "data.candidates: is not given, and this training learns from them")
    named = {**case.arguments("model"), **case.arguments("data"), **case.arguments("scorer"), **case.recipe}
    for key in ("backbone", "policy", "critic", "start", "candidates", "scenes", "cache", "choose_on"):
        folder = named.get(key)
        if not isinstance(folder, str):
            continue
        try:
            verify_listed(folder)
        except InputError as problem:
            yield Finding("FAIL", "data", f"{key}: {problem}")
        else:
            yield Finding("ok", "data", f"{key}: {folder} is complete")
            if key == "cache":
                yield _health(folder)
            if key == "scenes":
                yield from _pictures(Path(folder), named.get("sensors"))


def _health(cache: str) -> Finding:
    """Some scenes of a scoring cache, spread evenly, are none of a failed fit."""
    from navsim_adapter.cache.inspect import require_sound
    from navsim_adapter.cache.store import open_cache

    try:
        scenes = open_cache(cache)
        tokens = list(scenes)
        chosen = tokens[:: max(len(tokens) // LOOKED_AT, 1)]
        require_sound(scenes, chosen, cache)
    except InputError as problem:
        return Finding("FAIL", "data", f"cache: {problem}")
    return Finding("ok", "data", f"cache: {len(chosen)} of {counted(len(tokens), 'scene')} read and sound")


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _pictures(scenes: Path, sensors: Any) -> Iterator[Finding]:
    """The scenes' pictures are there and not empty; of a large table those of scenes all over it."""
    import numpy as np

    from dipole_vla.data.tables import SceneTable

    table = SceneTable(scenes, Path(sensors) if sensors else None)
    chosen = np.unique(np.linspace(0, len(table) - 1, min(len(table), PICTURED)).astype(int)).tolist()
    missing = {
        i: path for i in chosen for path in (table.row(i)["cameras"] or {}).values()
        if path and not _has_content(Path(table.sensors) / path)
    }  # fmt: skip
    looked = (
        counted(len(chosen), "scene")
        if len(chosen) == len(table)
        else f"{len(chosen)} of {counted(len(table), 'scene')} looked at"
    )
    if missing:
        first = next(iter(missing.values()))
        text = f"{table.sensors}: {len(missing)} of {looked} lack a picture, first {first}, which is not there or empty"
        yield Finding("FAIL", "pictures", text + "; copy it again, or give data.sensors")
    else:
        yield Finding("ok", "pictures", f"{table.sensors}: those of {looked} are there")
    maps = os.environ.get("NUPLAN_MAPS_ROOT")
    if maps:
        names = sorted({table.row(i)["map"] for i in chosen})
        absent = [name for name in names if not any(Path(maps).glob(f"{name}/**/map.gpkg"))]
        level: Level = "note" if absent else "ok"
        found = f"{', '.join(absent)} not found" if absent else f"{', '.join(names)} found"
        yield Finding(level, "maps", f"{maps}: {found} (only caching and rendering read them)")


def _disk(case: Case) -> Iterator[Finding]:
    folder = _existing(case.out)
    free = shutil.disk_usage(folder).free
    need = _bytes_to_write(case)
    if need is None:
        yield Finding("ok", "disk", f"{folder}: {free / 2**30:.1f} GiB free")
        return
    level: Level = "ok" if free > need else "FAIL"
    text = f"{folder}: {free / 2**30:.1f} GiB free, the run writes at most {need / 2**30:.2f} GiB"
    yield Finding(level, "disk", text + ("" if level == "ok" else "; make room or choose another out"))


def _bytes_to_write(case: Case) -> int | None:
    """Upper bound: three checkpoints (two kept, one in the making) with Adam's moments, and the export."""
    model = case.arguments("model")
    weights = Path(str(model.get("backbone", ""))) / "model.safetensors"
    if not weights.is_file():
        return None
    shapes = _shapes(weights)
    rank = model.get("rank")
    if "Dipole" in str((case.recipe.get("model") or {}).get("class_path")):
        trained = 2 * sum(int(rank or 32) * sum(shape) for shape in shapes if len(shape) == 2)
    else:
        trained = sum(_size(shape) for shape in shapes)
    return 4 * trained * (3 * 3 + 1)


def _shapes(path: Path) -> list[list[int]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:  # header only
        return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118


def _size(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    _software, _gpus, _ranks, _deepspeed, _variables, _storage, _recipe, _inputs, _disk,
)  # fmt: skip


def _existing(path: Path) -> Path:
    """The nearest folder above that is there already."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _rank() -> int:
    """0 also where what started the ranks contradicts itself, as the check of the ranks says."""
    with suppress(RuntimeError):
        environment = _environment()
        return environment.global_rank() if environment else 0
    return 0


def _environment() -> Any:
    """What started several ranks of which this is one, None if nothing did: a RANK alone is somebody else's."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    environment: Any = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else None
    if environment is None and SLURMEnvironment.detect():
        environment = SLURMEnvironment(auto_requeue=False)
    return environment if environment is not None and environment.world_size() > 1 else None
