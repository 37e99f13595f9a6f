"""How fast we score, with the devkit beside us where there is one: CPU seconds of one core, in one run.

    python benchmarks/scorer.py                        # the committed scenes
    DIPOLE_DEVKIT_PYTHON=… DIPOLE_DEVKIT_PATH=<navsim>:<nuplan-devkit> python benchmarks/scorer.py --metric pdms

The devkit's version on the path decides what it can be compared with: v1.1 for pdms, v2.2 for epdms. Without a
devkit the tests' plain reference (numpy and shapely) takes its place, and the table says so. A shared or slow
processor slows both sides: read the ratios. Where the time goes: `benchmarks/scorer_stages.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from navsim_adapter.cache.folder import build_cache
from navsim_adapter.cache.store import open_cache, write_index
from navsim_adapter.nuplan.root import data_root
from navsim_adapter.nuplan.scenes import split_filter
from navsim_adapter.scoring.scorer import Scorer

COMMITTED = ROOT / "tests" / "data" / "navsim"
COUNTS = (1, 16, 64, 256)
NAVTRAIN, NAVTRAIN_CORES = 103_288, 16

FIRST_SCORE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from navsim_adapter.scoring.scorer import Scorer
scorer = Scorer(sys.argv[2], metric=sys.argv[3])
token = next(iter(scorer.cache))
scorer.score([token], np.outer(np.arange(1.0, 9.0), [1.0, 0.0, 0.0])[None, None])
print(time.process_time())
"""
OPEN_CACHE = r"""
import re, sys, time
sys.path.insert(0, sys.argv[1])
from navsim_adapter.cache.store import open_cache
start = time.process_time()
cache = open_cache(sys.argv[2])
seconds = time.process_time() - start
for token in [token for _, token in zip(range(200), cache)]:
    cache[token]
most = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())  # getrusage would count the parent before exec
print(len(cache), seconds, int(most[1]) / 1024)
"""
VOCABULARY = 8192
SCORE_VOCABULARY = r"""
import re, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from navsim_adapter.cache.store import open_cache
from navsim_adapter.scoring.scorer import Scorer
from navsim_adapter.scoring.vocabulary import Run, read_vocabulary, score_vocabulary
folder, file, metric, out = sys.argv[2:]
start = time.process_time()
run = Run(folder, read_vocabulary(file), metric, Path(out))
score_vocabulary(run)
table = time.process_time() - start
most = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())
cache, poses = open_cache(folder), run.vocabulary.poses
scorer, count, part = Scorer(cache, metric=metric), len(cache) * len(poses), len(poses) // 8
score = lambda chosen: scorer.score(list(cache), np.broadcast_to(chosen, (len(cache), *chosen.shape)))
score(poses[:1])
start = time.process_time()
for first in range(0, part, 64):
    score(poses[first : first + 64])
warm = time.process_time() - start
print(1e6 * table / count, 1e6 * warm / (len(cache) * part), int(most[1]) / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=COMMITTED)
    parser.add_argument("--split", default="mini")
    parser.add_argument("--metric", choices=("pdms", "epdms"), nargs="+", default=["pdms", "epdms"])
    parser.add_argument("--scenes", type=int, default=12, help="scenes given to the other side too")
    parser.add_argument("--no-compile", action="store_true", help="leave out the minute of compiling from nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, (split, chosen) = data_root(options.data, {}), split_filter(options.split)
        warm = Path(folder) / "warm"
        build_cache(root, split, chosen, warm, 1)  # compiles, reads the maps
        caching = cpu_seconds(lambda: build_cache(root, split, chosen, Path(folder) / "again", 1), 1)
        cache = open_cache(warm)
        tokens = list(cache)
        size = sum(path.stat().st_size for path in warm.rglob("*") if path.is_file())
        print(f"processor: {processor()}")
        print(f"cache: {1e3 * caching / len(tokens):.1f} ms and {size / len(tokens) / 1e3:.0f} kB a scene")
        show_many_scenes(warm, Path(folder) / "many")
        for metric in options.metric:
            rates = measure(cache, options.data, tokens, metric)
            few = tokens[: options.scenes]
            poses = mixed(options.data, few, COUNTS[2])
            theirs = devkit(options.data, few, poses) or plain(cache, few, poses, metric)
            show(metric, rates, theirs, caching / len(tokens))
            show_first_score(warm, metric, options.no_compile)
            show_vocabulary(warm, options.data, tokens, metric, Path(folder))


def measure(cache, data: Path, tokens: list[str], metric: str) -> dict[str, float]:
    """Trajectories per CPU second."""
    scorer = Scorer(cache, metric=metric)
    every, human = mixed(data, tokens, max(COUNTS)), plausible(data, tokens, COUNTS[2])
    scorer.score(tokens, every[:, :1])
    single = [([token], every[scene : scene + 1, :1]) for scene, token in enumerate(tokens)]
    seconds = cpu_seconds(lambda: [scorer.score(*one) for one in single])
    rates = {"warm, one trajectory a call": len(tokens) / seconds}
    for count in COUNTS[1:]:
        few = np.ascontiguousarray(every[:, :count])
        seconds = cpu_seconds(lambda few=few: scorer.score(tokens, few))
        rates[f"warm, {count} a scene"] = len(tokens) * count / seconds
    seconds = cpu_seconds(lambda: scorer.score(tokens, human))
    rates["warm, 64 plausible a scene"] = human.shape[0] * human.shape[1] / seconds
    few = np.ascontiguousarray(every[:, :64])
    seconds = cpu_seconds(lambda: Scorer(cache, metric=metric).score(tokens, few))
    rates["fresh from the cache, 64 a scene"] = len(tokens) * 64 / seconds
    many = Scorer(cache, metric=metric, threads=2)
    long = np.concatenate([every] * 8)  # what starting the threads costs should not show
    walls = []
    for one in (scorer, many, scorer, many):
        start = time.perf_counter()
        one.score(tokens * 8, long)
        walls.append(time.perf_counter() - start)
    rates["two cores against one"] = min(walls[0], walls[2]) / min(walls[1], walls[3])
    return rates


def show(metric: str, rates: dict[str, float], theirs: dict, caching: float) -> None:
    other, batched, single = theirs["name"], theirs["batched_s_per_trajectory"]["64"], theirs["per_trajectory_s"]
    scaling = rates.pop("two cores against one")
    print(f"\n{metric}: trajectories per CPU second of one core; {other}: {1 / single:,.1f} one by one, "
          f"{1 / batched:,.1f} at 64 a call")  # fmt: skip
    print(f"  {'':34s}{'ours':>10s}{'x one by one':>15s}{'x batched':>12s}")
    for name, rate in rates.items():
        print(f"  {name:34s}{rate:10,.0f}{rate * single:15,.0f}{rate * batched:12,.0f}")
    print(f"  two cores against one, wall time: {scaling:.2f} x")
    fresh = rates["fresh from the cache, 64 a scene"]
    print(f"  navtrain x 64 on {NAVTRAIN_CORES} cores, projected: {NAVTRAIN * 64 / fresh / NAVTRAIN_CORES:.0f} s")
    if "caching_s_per_scene" in theirs:
        official = theirs["caching_s_per_scene"]
        print(f"  caching: {other} {1e3 * official:.0f} ms a scene, {official / caching:.0f} x ours")


def show_first_score(cache: Path, metric: str, no_compile: bool) -> None:
    """CPU seconds of a new process to its first score."""

    def run(kernels: str | None) -> float:
        environment = {**os.environ, **({"NUMBA_CACHE_DIR": kernels} if kernels else {})}
        line = [sys.executable, "-c", FIRST_SCORE, str(ROOT), str(cache), metric]
        return float(subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout)

    print(f"  new process to its first score: {min(run(None) for _ in range(3)):.2f} s with compiled kernels", end="")
    if not no_compile:
        with tempfile.TemporaryDirectory() as empty:
            print(f", {run(empty):.0f} s without", end="")
    print()


def show_vocabulary(cache: Path, data: Path, tokens: list[str], metric: str, folder: Path) -> None:
    """`navsim-adapter vocabulary` beside warm calls of 64 of the same trajectories, in one process of its own."""
    every = mixed(data, tokens, COUNTS[2]).reshape(-1, 8, 3)
    np.save(folder / "vocabulary.npy", every[np.random.default_rng(2).integers(len(every), size=VOCABULARY)])
    line = [sys.executable, "-c", SCORE_VOCABULARY, str(ROOT), str(cache), str(folder / "vocabulary.npy"), metric]
    said = subprocess.run([*line, str(folder / f"table-{metric}")], capture_output=True, text=True, check=True).stdout
    table, warm, megabytes = map(float, said.split()[-3:])
    print(
        f"  vocabulary of {VOCABULARY:,} over {len(tokens)} scenes, read, scored and written: {table:.2f} microseconds"
    )
    print(f"    a trajectory; 64 warm {warm:.2f}: {warm / table:.2f} x its rate; at most {megabytes:.0f} MB")


def show_many_scenes(cache: Path, folder: Path, count: int = 100_000) -> None:
    """Opening a cache of very many scenes: the same files under other names."""
    logs: dict[str, list[str]] = {}
    (folder / "logs").mkdir(parents=True)
    files = sorted((cache / "logs").iterdir())
    scenes = len(open_cache(cache)) // len(files)
    for copy in range(count // max(scenes, 1)):
        name = f"log{copy:06d}"
        os.link(files[copy % len(files)], folder / "logs" / f"{name}.cache")
        logs[name] = [f"{copy * scenes + row:016x}" for row in range(scenes)]
    write_index(folder, logs)
    (folder / "manifest.json").write_text("{}")
    line = [sys.executable, "-c", OPEN_CACHE, str(ROOT), str(folder)]
    found, seconds, megabytes = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    print(f"cache of {int(found):,} scenes: opens in {float(seconds):.2f} s; {float(megabytes):.0f} MB with 200 read")


def mixed(root: Path, tokens: list[str], count: int) -> np.ndarray:
    """(S, count, 8, 3): the set's own trajectories of each scene, crashes and absurdities included, stretched."""
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


def plausible(root: Path, tokens: list[str], count: int) -> np.ndarray:
    """(S, count, 8, 3): the human's drive at other speeds, bent to the side."""
    with np.load(root / "trajectories.npz") as arrays:
        token, name, poses = arrays["token"].astype(str), arrays["name"].astype(str), arrays["poses"]
    rng = np.random.default_rng(1)
    human = np.stack([poses[(token == one) & (name == "human")][0] for one in tokens])[:, None].repeat(count, 1)
    human[..., :2] *= rng.uniform(0.8, 1.2, (*human.shape[:2], 1, 1))
    bend = rng.normal(0.0, 0.02, human.shape[:2])[..., None] * np.linspace(1 / 8, 1.0, 8)
    human[..., 1] += bend * human[..., 0]
    human[..., 2] += bend
    return human


def devkit(data: Path, tokens: list[str], poses: np.ndarray) -> dict | None:
    python, path = os.environ.get("DIPOLE_DEVKIT_PYTHON"), os.environ.get("DIPOLE_DEVKIT_PATH")
    if not python or not path:
        return None
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "candidates.npz", token=np.array(tokens), poses=poses, interval=0.5)
        line = [python, "-W", "ignore", str(Path(__file__).with_name("devkit_timing.py")), "--data", str(data)]
        line += ["--candidates", f"{folder}/candidates.npz", "--counts", "64", "--repeats", "1"]
        done = subprocess.run(line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {**found, "name": f"devkit {found['devkit']}"}


def plain(cache, tokens: list[str], poses: np.ndarray, metric: str) -> dict:
    """The tests' plain reference, one trajectory at a time."""
    from tests.navsim_adapter.scoring import plain

    start = time.process_time()
    for token, own in zip(tokens[:3], poses):
        for plan in own[:4]:
            plain.score(cache[token], plan, metric)
    each = (time.process_time() - start) / (4 * len(tokens[:3]))
    name = "our plain reference (no devkit named)"
    return {"name": name, "per_trajectory_s": each, "batched_s_per_trajectory": {"64": each}}


def cpu_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vector = next((name for name in ("avx512f", "avx2", "avx") if name in facts.get("flags", "").split()), "no AVX")
    return f"{facts.get('model name', 'unknown')}, family {facts.get('cpu family')}, {vector}"


if __name__ == "__main__":
    main()
