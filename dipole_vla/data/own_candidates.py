"""A table of candidates of one's own: plans that were not drawn by `collect`, such as a human's at a take-over."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipole_vla.advantage import group_relative
from dipole_vla.data.splits import refuse_collection
from dipole_vla.data.tables import CandidateTable, SceneTable
from dipole_vla.forming import AS_RECORDED, HOW
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, write_json
from navsim_adapter.trajectories import DEFAULT_INTERVAL


def write_candidates(
    folder: str | Path,
    scenes: str | Path,
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    metric: str = "none",
    interval: float = DEFAULT_INTERVAL,
) -> CandidateTable:
    """Write a table that `fit` reads, and open it: K rows a scene, one after another, as many in every scene.

    folder: to write; it may not be there yet.  scenes: as written by `navsim-adapter convert`, of a split that may be
    trained on.  metric: by which `score` was made, as a critic knows it.  interval: seconds between poses.

    columns: `token` (rows,) and `poses` (rows, T, 3) in metres and radians; whatever else is known of the rows:
    `source` (human, reference, guided or a word of one's own), `sign` (1 = trains the positive policy alone, -1 = the
    negative alone, 0 = as G says), sub-scores, `score`, `return` (default: the score, else 0), `advantage` (default:
    group-relative). InputError names the scene that is wrong, and nothing is written then.
    """
    folder, table = Path(folder), SceneTable(scenes)
    refuse_collection(table.split, False)
    if folder.exists():
        raise InputError(f"{folder}: is there already; name a folder that is not")
    for name in ("token", "poses"):
        if name not in columns:
            raise InputError(f"{folder}: column {name} is missing; give token and poses at least")
    odd = {name: len(values) for name, values in columns.items() if len(values) != len(columns["token"])}
    if odd:
        name, found = next(iter(odd.items()))
        raise InputError(f"{folder}: column {name} has {found} rows, token {len(columns['token'])}; give as many")
    unknown = [token for token in columns["token"] if token not in table.position]
    if unknown:
        raise InputError(f"{folder}: scene {unknown[0]} is not in {scenes}; give the scenes of these plans")
    try:
        return _written(folder, table, _completed(columns), {"metric": metric, "interval": interval})
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _completed(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """With the columns that were left out."""
    found = {name: np.asarray(values) for name, values in columns.items()}
    tokens = found["token"]
    starts = np.flatnonzero(np.concatenate([[True], tokens[1:] != tokens[:-1]]))
    sizes = np.diff(starts, append=len(tokens))
    found.setdefault("index", np.concatenate([np.arange(size) for size in sizes]).astype(np.int32))
    found.setdefault("source", np.full(len(tokens), "own"))
    found.setdefault("score", np.zeros(len(tokens)))
    found.setdefault("return", found["score"])
    if "advantage" not in found:
        is_grouped = len(set(sizes)) == 1 and sizes[0] > 1
        returns = torch.from_numpy(found["return"].astype(np.float64))
        groups = group_relative(returns.reshape(-1, int(sizes[0]))) if is_grouped else torch.zeros(len(tokens))
        found["advantage"] = groups.double().numpy().reshape(-1)
    return found


def _written(
    folder: Path, scenes: SceneTable, columns: Mapping[str, np.ndarray], given: Mapping[str, Any]
) -> CandidateTable:
    from datasets import Dataset

    tokens = set(columns["token"].tolist())
    Dataset.from_dict({name: values.tolist() for name, values in columns.items()}).save_to_disk(str(folder))
    about = {
        **given,
        "split": scenes.split,
        "logs": sorted({scenes.log_names[scenes.position[token]] for token in tokens}),
        "scenes": len(tokens),
        "advantage": HOW["std"],
        "allow_eval_split": False,
    }
    write_json(folder / "candidates.json", about)
    finish(folder, {"command": "write_candidates", "scenes": str(scenes.folder)})
    table = CandidateTable(folder)
    table.formed(AS_RECORDED)  # what is wrong in column sign is said
    return table
