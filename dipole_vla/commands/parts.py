"""Process a table of scenes in resumable parts, by one process or by the shards of a job array.

Part k covers scenes k*PART up to (k+1)*PART in every run: shards take every n-th part, and a run without a shard
makes what is still missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dipole_vla.progress import bar, console
from navsim_adapter.foundation.files import atomic_path, making
from navsim_adapter.foundation.shard import Shard

FOLDER = "parts"
PART = 128  # scenes


def run_parts(
    out: Path,
    made_by: Mapping[str, Any],
    what: str,
    scenes: int,
    make: Callable[[range], pa.Table],
    shard: str | None = None,
) -> bool:
    """Make the parts of `out` that are not there; whether all are there now (a shard may leave others to do).

    made_by: as in `files.making`.  shard: "i/n", as in the job array.  make: scene positions -> their rows.
    """
    chosen = Shard.parse(shard) if shard else Shard(1, 1)
    parts = [range(start, min(start + PART, scenes)) for start in range(0, scenes, PART)]
    mine = chosen.take(parts)
    with making(out, made_by, shard=shard) as is_open, bar(what, sum(map(len, mine))) as progress:
        if not is_open:
            return True
        for positions in mine:
            path = _path(out, positions)
            if not path.is_file():
                rows = make(positions)
                with atomic_path(path) as aside:
                    pq.write_table(rows, aside)
            progress.advance(len(positions))
    missing = sum(not _path(out, positions).is_file() for positions in parts)
    if missing:
        console.print(f"shard {shard}: done; {missing} of {len(parts)} parts are still with the others")
    return not missing


def read_parts(out: Path) -> pa.Table:
    """All rows, in the order of the scenes, with the schema's metadata."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((out / FOLDER).glob("*.parquet"))])


def _path(out: Path, positions: range) -> Path:
    return out / FOLDER / f"{positions.start:08d}.parquet"
