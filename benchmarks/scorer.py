"""How fast we score, with the devkit beside us where there is one: one table, CPU seconds of one core, one run.

    python benchmarks/scorer.py                        # the committed scenes
    DIPOLE_DEVKIT_PYTHON=… DIPOLE_DEVKIT_PATH=<navsim>:<nuplan-devkit> python benchmarks/scorer.py --metric pdms

The devkit's version on the path decides what it can be compared with: v1.1 for pdms, v2.2 for epdms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from navsim_adapter.cache.folder import build_cache
from navsim_adapter.cache.store import open_cache
from navsim_adapter.root import data_root
from navsim_adapter.scenes import split_filter
from navsim_adapter.scoring.scorer import Scorer

COMMITTED = Path(__file__).resolve().parents[1] / "tests" / "data" / "navsim"
COUNTS = (1, 16, 64, 256)


def cpu_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def candidates(root: Path, tokens: list[str], count: int) -> np.ndarray:
    """(S, count, 8, 3): the set's own trajectories of each scene, repeated with small lateral and speed changes."""
    with np.load(root / "trajectories.npz") as arrays:
        token, poses = arrays["token"].astype(str), arrays["poses"]
    rng = np.random.default_rng(0)
    rows = []
    for name in tokens:
        own = poses[token == name]
        drawn = own[rng.integers(len(own), size=count)]
        drawn[..., :2] *= rng.uniform(0.8, 1.2, (count, 1, 1))
        rows.append(drawn)
    return np.stack(rows)


def devkit(data: Path, tokens: list[str], poses: np.ndarray) -> dict | None:
    python, path = os.environ.get("DIPOLE_DEVKIT_PYTHON"), os.environ.get("DIPOLE_DEVKIT_PATH")
    if not python or not path:
        return None
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "candidates.npz", token=np.array(tokens), poses=poses, interval=0.5)
        line = [python, "-W", "ignore", str(Path(__file__).with_name("devkit_timing.py")), "--data", str(data)]
        line += ["--candidates", f"{folder}/candidates.npz", "--counts", *map(str, COUNTS[:3]), "--repeats", "1"]
        done = subprocess.run(line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=COMMITTED)
    parser.add_argument("--split", default="mini")
    parser.add_argument("--metric", choices=("pdms", "epdms"), nargs="+", default=["pdms", "epdms"])
    parser.add_argument("--scenes", type=int, default=12, help="scenes given to the devkit too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, (split, chosen) = data_root(options.data, {}), split_filter(options.split)
        build_cache(root, split, chosen, Path(folder) / "warm", 1)  # compiles, reads the maps
        caching = cpu_seconds(lambda: build_cache(root, split, chosen, tempfile.mkdtemp(dir=folder) + "/c", 1), 1)
        cache = open_cache(Path(folder) / "warm")
        tokens = list(cache)
        size = sum(path.stat().st_size for path in (Path(folder) / "warm").rglob("*") if path.is_file())
        each = caching / len(tokens)
        print(f"{len(tokens)} scenes; cache {1e3 * each:.1f} ms and {size / len(tokens) / 1e3:.0f} kB a scene")
        poses = candidates(options.data, tokens, max(COUNTS))
        for metric in options.metric:
            rates = measure(cache, tokens, poses, metric)
            theirs = devkit(options.data, tokens[: options.scenes], poses[: options.scenes, : COUNTS[2]])
            show(metric, rates, theirs, each)


def measure(cache, tokens: list[str], poses: np.ndarray, metric: str) -> dict[str, float]:
    """Trajectories per CPU second: warm scenes by candidates per call, and scenes read anew from the cache."""
    scorer = Scorer(cache, metric=metric)
    rates = {}
    for count in COUNTS:
        few = np.ascontiguousarray(poses[:, :count])
        scorer.score(tokens, few, pair_frames=False)
        seconds = cpu_seconds(lambda few=few: scorer.score(tokens, few, pair_frames=False))
        rates[f"warm, {count} per scene"] = few.shape[0] * count / seconds
    few = np.ascontiguousarray(poses[:, :64])
    seconds = cpu_seconds(lambda: Scorer(cache, metric=metric).score(tokens, few, pair_frames=False))
    return {**rates, "fresh, 64 per scene": few.shape[0] * 64 / seconds}


def show(metric: str, rates: dict[str, float], theirs: dict | None, caching: float) -> None:
    print(f"\n{metric}: trajectories per second of one core")
    for name, rate in rates.items():
        print(f"  {name:24s} {rate:12,.0f}")
    if theirs is None:
        print("  no devkit named (DIPOLE_DEVKIT_PYTHON, DIPOLE_DEVKIT_PATH): no ratio")
        return
    print(f"  devkit {theirs['devkit']}, same scenes and candidates: {json.dumps(theirs)}")
    official = theirs["caching_s_per_scene"]
    print(f"  caching: devkit {official:.3f} s a scene, {official / caching:.0f} x ours")


if __name__ == "__main__":
    main()
