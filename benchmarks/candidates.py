"""What opening a table of candidates costs: navtrain by 17 candidates, in a process of its own.

    python benchmarks/candidates.py                     # CPU seconds, and peak memory over the table's size
    python benchmarks/candidates.py --old PATH          # also by the code of the source tree PATH, and the ratio
    python benchmarks/candidates.py --scenes 1000       # a smaller table: shows that the script works

CPU seconds are of the opening alone, after the imports. Memory is the greatest resident size of the process less what
it held after the imports; pages of the mapped table count in it. The other tree opens the first `--old_scenes` scenes,
because it may take long: its seconds are multiplied up to the whole table, its time being proportional to rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pyarrow as pa

from navsim_adapter.foundation.files import finish, write_json

NAVTRAIN, GROUP = 103_288, 17
OPENED = """
import json, sys, time
import numpy, torch, pyarrow.compute, datasets
from dipole_vla.data.tables import CandidateTable
def peak_mb():  # of this program alone; what getrusage says began with its parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
held, start = peak_mb(), time.process_time()
table = CandidateTable(sys.argv[1])
spent = time.process_time() - start
print(json.dumps({"cpu_s": spent, "peak_mb": peak_mb() - held, "rows": len(table) * table.score.shape[1]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=NAVTRAIN)
    parser.add_argument("--candidates", type=int, default=GROUP)
    parser.add_argument("--old", type=Path, help="a source tree to compare with")
    parser.add_argument("--old_scenes", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="JSON file of the numbers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        table = write_candidates(Path(place) / "candidates", given.scenes, given.candidates)
        size = sum(path.stat().st_size for path in table.glob("*.arrow")) / 2**20
        found: dict[str, Any] = {"table_mb": size, "new": opened(table, ROOT)}
        found["peak_over_table_mb"] = found["new"]["peak_mb"] - size
        print(f"{found['new']['rows']:,} rows, {size:,.0f} MB on disk")
        print(f"opened in {found['new']['cpu_s']:.2f} CPU s, peak memory {found['new']['peak_mb']:,.0f} MB", end=", ")
        print(f"{found['peak_over_table_mb']:+,.0f} MB beside the table's size")
        if given.old:
            few = write_candidates(Path(place) / "few", min(given.old_scenes, given.scenes), given.candidates)
            found |= {"old": opened(few, given.old.resolve()), "new_few": opened(few, ROOT)}
            whole = found["old"]["cpu_s"] * found["new"]["rows"] / found["old"]["rows"]
            found |= {"old_extrapolated_cpu_s": whole, "ratio": whole / found["new"]["cpu_s"]}
            print(f"{given.old}: {found['old']['cpu_s']:.2f} CPU s for {found['old']['rows']:,} rows,", end=" ")
            print(f"so {whole:,.0f} s for all (extrapolated by rows): {found['ratio']:,.0f} times as long")
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


def write_candidates(folder: Path, scenes: int, group: int) -> Path:
    """A table in the layout of `dipole-vla collect`, poses of (8, 3) as lists of float64."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    rng = np.random.default_rng(0)
    rows = scenes * group
    score = rng.uniform(size=(scenes, group))
    advantage = (score - score.mean(1, keepdims=True)) / score.std(1, keepdims=True)
    poses = pa.array(rng.normal(size=rows * 24))
    for length in (3, 8):
        poses = pa.ListArray.from_arrays(np.arange(0, len(poses) + 1, length, dtype=np.int32), poses)
    columns = {
        "token": np.repeat([f"{i:016x}" for i in range(scenes)], group),
        "index": np.tile(np.arange(group, dtype=np.int32), scenes),
        "source": np.full(rows, "reference"),
        "poses": poses,
        **{name: score.ravel() for name in ("no_at_fault_collisions", "ego_progress", "score", "return")},
        "advantage": advantage.ravel(),
    }
    arrays = {name: pa.array(given) if isinstance(given, np.ndarray) else given for name, given in columns.items()}
    Dataset(pa.table(arrays)).save_to_disk(str(folder))
    about = {"metric": "pdms-v1.1", "split": "trainval", "allow_eval_split": False, "advantage": "group-relative"}
    write_json(folder / "candidates.json", about)
    finish(folder, {"command": "benchmark"})
    return folder


def opened(table: Path, tree: Path) -> dict[str, float]:
    """The numbers of a fresh process that opens `table` by the code of `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", OPENED, str(table)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tree, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
