"""A split of its own for choosing: whole logs held out, as two scene filters in the devkit's format.

Scenes of one log show the same drive, half a second apart; to hold out scenes would be to test on what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_once
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import SceneFilter, by_log, find_logs, log_scenes

TRAIN, HELD_OUT = "train.yaml", "held_out.yaml"


@dataclass(frozen=True)
class Part:
    """One of the two filters, with what it finds."""

    chosen: SceneFilter
    logs: int
    scenes: int


def hold_out(
    root: DataRoot,
    split: str,
    chosen: SceneFilter,
    count: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Part, Part]:
    """The scenes that `chosen` finds as those of `count` held-out logs and those of the rest: (rest, held out).

    Only logs that hold a scene count. Which logs are held out depends on their names and `seed` alone, and those of a
    smaller `count` are among them. Raises InputError where no log would be left for the rest.
    """
    tokens = _tokens_by_log(root, split, chosen, progress)
    if not 1 <= count < len(tokens):
        raise InputError(
            f"--hold-out: {count} of {len(tokens)} logs of {split} that hold a scene; give 1 to {len(tokens) - 1}"
            if len(tokens) > 1
            else f"--hold-out: {split} has {len(tokens)} log that holds a scene; it takes two at least"
        )
    names = sorted(tokens, key=lambda name: sha256(f"{seed}/{name}".encode()).digest())
    return _part(chosen, tokens, names[count:]), _part(chosen, tokens, names[:count])


def write_filters(out: str | Path, parts: Iterable[Part]) -> list[Path]:
    """`train.yaml` and `held_out.yaml` in `out`; raises InputError where others are there."""
    files = [Path(out) / name for name in (TRAIN, HELD_OUT)]
    texts = [_text(part.chosen) for part in parts]
    for path, text in sorted(zip(files, texts), key=lambda pair: not pair[0].exists()):  # another one is met first
        write_once(path, text.encode())
    return files


def _tokens_by_log(
    root: DataRoot, split: str, chosen: SceneFilter, progress: Callable[[int, int], None]
) -> dict[str, list[str]]:
    logs = find_logs(root, split, chosen)
    found: dict[str, list[str]] = {}
    for done, path in enumerate(logs, 1):
        for name, scenes in by_log(path, log_scenes(path, split, chosen)).items():
            found.setdefault(name, []).extend(scene.token for scene in scenes)
        progress(done, len(logs))
    return {name: tokens for name, tokens in found.items() if tokens}


def _part(chosen: SceneFilter, tokens: dict[str, list[str]], names: list[str]) -> Part:
    own = [token for name in names for token in tokens[name]]
    listed = None if chosen.tokens is None else frozenset(own)
    scenes = len(own) if chosen.max_scenes is None else min(len(own), chosen.max_scenes)
    return Part(replace(chosen, log_names=frozenset(names), tokens=listed), len(names), scenes)


def _text(chosen: SceneFilter) -> str:
    """YAML that the devkit reads, too; names in order, so that the same choice is the same file."""
    import yaml

    lists = (list, frozenset)
    content = {item.name: getattr(chosen, item.name) for item in fields(chosen)}
    plain = {key: sorted(value) if isinstance(value, lists) else value for key, value in content.items()}
    return yaml.dump(plain, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
