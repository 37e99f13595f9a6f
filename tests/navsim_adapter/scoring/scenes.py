"""Scenes and tables that the scoring tests run on: the developer sets beside the clone, or the subset kept in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from navsim_adapter.scene_cache import SceneCache
from tests.navsim_adapter.scoring.official import has_map, load_scene, read_table
from tests.shared import SETS, SHARED

_OWN = Path(__file__).resolve().parents[2] / "data"


def roots() -> list[Path]:
    """Folders in the layout of navsim_dev, the committed subset last."""
    beside = [SHARED / name for name in SETS] if SHARED else []
    own = [path for path in sorted(_OWN.glob("*")) if (path / "caches" / "v1").is_dir()]
    return [*beside, *own]


@cache
def scenes_of(root: Path) -> Mapping[str, SceneCache]:
    """The scenes of a root as the official caches hold them, those with a whole map."""
    tokens = sorted(path.stem for path in (root / "caches" / "v1").glob("*.npz"))
    return {token: load_scene(root, token) for token in tokens if has_map(root, token)}


@cache
def trajectories_of(root: Path, table: str = "trajectories") -> Mapping[tuple[str, str], tuple[np.ndarray, float]]:
    """(token, name) -> poses (T, 3) and interval."""
    with np.load(root / f"{table}.npz") as content:
        tokens, names, poses = content["token"], content["name"], content["poses"]
        intervals = content["interval"] if "interval" in content.files else np.full(len(tokens), 0.5)
        rows = np.split(poses, np.cumsum(content["size"])[:-1]) if "size" in content.files else list(poses)
    return {(str(t), str(n)): (row, float(i)) for t, n, row, i in zip(tokens, names, rows, intervals)}


@cache
def rows_of(root: Path, table: str) -> tuple[dict[str, str], ...]:
    """Rows of a score table whose scenes are in `scenes_of`."""
    return tuple(row for row in read_table(root / f"{table}.csv") if row["token"] in scenes_of(root))
