"""This tree's scorer beside another tree's, in one run: ratios of CPU seconds of one core.

    git worktree add --detach ../old 485b528
    python benchmarks/scorer_ratio.py --old ../old                  # the committed scenes, both metrics

Each tree has a process of its own, and the two take turns, one piece of work each: a shared or slow processor slows
both sides. A line's ratio is the median of the turns' ratios. Both sides must give the same figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
OBJECTS = (100, 250)
PLAIN = ("-P",)  # this folder not on the path: the tree's modules only
CANDIDATES = "candidates.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="a source tree to compare with")
    parser.add_argument("--data", type=Path, default=ROOT / "tests" / "data" / "navsim")
    parser.add_argument("--metric", choices=("pdms", "epdms"), nargs="+", default=["pdms", "epdms"])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--only", default="", help="lines with this text")
    options = parser.parse_args()
    trees = {"old": options.old.resolve(), "new": ROOT}
    with tempfile.TemporaryDirectory() as folder:
        for name, tree in trees.items():
            line = ["cache", "--data", str(options.data), "--split", "mini", "--out", f"{folder}/{name}"]
            in_tree(tree, "-m", "navsim_adapter.cli", *line)
        write_candidates(Path(folder), options.data)
        sizes = {name: size_of(Path(folder) / name) for name in trees}
        print(f"kB a scene on disk: {sizes['old']:.0f} old, {sizes['new']:.0f} new")
        for metric in options.metric:
            show(metric, trees, Path(folder), options.turns, options.only)


def write_candidates(folder: Path, data: Path) -> None:
    """Where both trees find them: `mixed` and `plausible` of `scorer.py`."""
    sys.path.append(str(ROOT))
    from scorer import mixed, plausible

    from navsim_adapter.cache.store import open_cache

    tokens = list(open_cache(folder / "new"))
    np.savez(folder / CANDIDATES, tokens=tokens, mixed=mixed(data, tokens, 64), plausible=plausible(data, tokens, 64))


def show(metric: str, trees: dict[str, Path], folder: Path, turns: int, only: str) -> None:
    workers = {name: asked(tree, folder / name, metric) for name, tree in trees.items()}
    with workers["old"] as old, workers["new"] as new:
        kinds = old("kinds")
        assert old("figures") == new("figures"), "the two trees score differently"
        print(f"\n{metric}: CPU microseconds a trajectory, median of {turns} turns")
        print(f"  {'':32s}{'old':>9s}{'new':>9s}{'ratio':>8s}  (of single turns)")
        for kind in (kind for kind in kinds if only in kind):
            both = [(old(kind), new(kind)) for _ in range(turns)]
            line(kind, both)
    first = {name: [str(Path(__file__).resolve()), "--first", str(folder / name), metric] for name in trees}
    seconds = [[float(in_tree(trees[name], *words)) for name, words in first.items()] for _ in range(3)]
    line("first score of a process, ms", [(1e3 * old, 1e3 * new) for old, new in seconds])


def line(kind: str, both: list[tuple[float, float]]) -> None:
    ratios = sorted(a / b for a, b in both)
    old, new = (statistics.median(side) for side in zip(*both))
    print(f"  {kind:32s}{old:9.2f}{new:9.2f}{statistics.median(ratios):8.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def size_of(cache: Path) -> float:
    count = json.loads((cache / "scenes.json").read_text())["count"]
    return sum(path.stat().st_size for path in (cache / "logs").iterdir()) / count / 1e3


def in_tree(tree: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    words = (sys.executable, *PLAIN, *words)
    return subprocess.run(words, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True, check=True).stdout


@contextmanager
def asked(tree: Path, cache: Path, metric: str) -> Iterator[Callable[[str], Any]]:
    """Asks a process that has the tree's code: `work` below, by name."""
    words = [sys.executable, *PLAIN, str(Path(__file__).resolve()), "--worker", str(cache), metric]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(tree)}, cwd=tree, **pipes) as process:

        def ask(kind: str) -> Any:
            process.stdin.write(kind + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


def serve(cache_folder: str, metric: str) -> None:
    kinds = work(cache_folder, metric)
    for kind in map(str.strip, sys.stdin):
        if kind == "kinds":
            answer: Any = [name for name in kinds if name != "figures"]
        elif kind == "figures":
            answer = kinds[kind][1]()
        else:
            count, run = kinds[kind]
            start = time.process_time()
            run()
            answer = 1e6 * (time.process_time() - start) / count
        print(json.dumps(answer), flush=True)


def work(cache_folder: str, metric: str) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Name -> trajectories and what scores them; all but one name are warm."""
    from navsim_adapter.cache.store import open_cache
    from navsim_adapter.scoring.scorer import Scorer

    cache = open_cache(cache_folder)
    scorer = Scorer(cache, metric=metric)
    with np.load(Path(cache_folder).parent / CANDIDATES) as content:
        tokens, many, human = content["tokens"].tolist(), content["mixed"], content["plausible"]
    few, single = np.ascontiguousarray(many[:, :16]), np.ascontiguousarray(many[:, :1])
    calls = [([token], single[scene : scene + 1]) for scene, token in enumerate(tokens)]
    kinds: dict[str, tuple[int, Callable[[], Any]]] = {
        "64, warm": (64 * len(tokens), lambda: scorer.score(tokens, many)),
        "64 plausible, warm": (64 * len(tokens), lambda: scorer.score(tokens, human)),
        "16, warm": (16 * len(tokens), lambda: scorer.score(tokens, few)),
        "1 a call, warm": (len(tokens), lambda: [scorer.score(*call) for call in calls]),
        "64, fresh from the cache": (64 * len(tokens), lambda: Scorer(cache_folder, metric).score(tokens, many)),
    }
    for count in OBJECTS:
        crowd = Scorer({token: crowded(cache[token], count) for token in tokens}, metric=metric)
        kinds[f"64, {count} objects, warm"] = (64 * len(tokens), lambda crowd=crowd: crowd.score(tokens, many))
    for _, run in kinds.values():
        run()
    scores = [one.score(tokens, poses) for one in (scorer, crowd) for poses in (many, human)]
    shown = [*scores[0].sub_scores, "pdm_score", *scores[0].diagnostics]  # before two-frame comfort
    figures = b"".join(one[name].tobytes() for one in scores for name in shown if not name.startswith("two_frame"))
    kinds["figures"] = (0, lambda: hashlib.sha256(figures).hexdigest())
    return kinds


def crowded(scene: Any, count: int) -> Any:
    """The scene with copies of its objects, moved by up to 60 m, until there are `count`."""
    rng = np.random.default_rng(2)
    own = len(scene.object_type)
    rows = np.arange(max(count, own)) % own
    shift = rng.uniform(-60.0, 60.0, (len(rows), 1, 2))
    shift[:own] = 0.0
    pose = np.asarray(scene.object_pose)[rows].copy()
    pose[..., :2] += shift
    return replace(
        scene,
        object_tokens=tuple(str(i) for i in range(len(rows))),
        object_type=np.asarray(scene.object_type)[rows],
        object_versions=np.asarray(scene.object_versions)[rows],
        object_size=np.asarray(scene.object_size)[rows],
        object_velocity=np.asarray(scene.object_velocity)[rows],
        object_pose=pose,
        object_knots=None,
    )


def first_score(cache: str, metric: str) -> None:
    from navsim_adapter.scoring.scorer import Scorer

    scorer = Scorer(cache, metric=metric)
    scorer.score([next(iter(scorer.cache))], np.outer(np.arange(1.0, 9.0), [1.0, 0.0, 0.0])[None, None])
    print(time.process_time())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(*sys.argv[2:])
    elif sys.argv[1:2] == ["--first"]:
        first_score(*sys.argv[2:])
    else:
        main()
