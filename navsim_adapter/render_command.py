"""`navsim-adapter render`: scenes of a cache as pictures, with trajectories of a file beside the human's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from navsim_adapter.cache.scene_cache import PDMS, SceneCache
from navsim_adapter.cache.store import open_cache
from navsim_adapter.errors import InputError
from navsim_adapter.files import write_bytes
from navsim_adapter.render import CHOSEN, HUMAN, REFERENCE, Plan, picture, seen_by


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `navsim-adapter render`."""
    parser.add_argument("--cache", type=Path, required=True, help="folder written by `navsim-adapter cache`")
    parser.add_argument("--tokens", nargs="*", default=None, help="scenes to draw (default: the first --limit ones)")
    parser.add_argument("--limit", type=int, default=20, help="how many scenes without --tokens (default 20)")
    parser.add_argument(
        "--trajectories", type=Path, default=None, help=".npz with token, name, poses (n, 8, 3): drawn beside the human"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for one PNG per scene")


def run(args: argparse.Namespace) -> int:
    """Draw the chosen scenes, one `<token>.png` each."""
    scenes: Mapping[str, SceneCache] = open_cache(args.cache)
    tokens = list(args.tokens) if args.tokens else list(scenes)[: args.limit]
    unknown = [token for token in tokens if token not in scenes]
    if unknown:
        raise InputError(f"{args.cache}: no scene {unknown[0]} among {len(scenes)}; check --tokens")
    plans = read_trajectories(args.trajectories) if args.trajectories else {}
    for token in tokens:
        scene = seen_by(scenes[token], PDMS)
        write_bytes(args.out / f"{token}.png", picture(scene, scene_plans(scene, plans.get(token, []))))
    print(f"{len(tokens)} pictures in {args.out}")
    return 0


def scene_plans(cache: SceneCache, others: Sequence[Plan]) -> list[Plan]:
    """The human's future, where the log has one, before `others`."""
    human = [] if cache.human_future is None else [Plan("human", cache.human_future, HUMAN)]
    return [*human, *others]


def read_trajectories(path: Path) -> dict[str, list[Plan]]:
    """token -> plans of an .npz with `token` (n,), `name` (n,), `poses` (n, T, 3); the human is left to the cache."""
    try:
        with np.load(path, allow_pickle=False) as file:
            tokens, names, poses = file["token"], file["name"], file["poses"]
    except (OSError, KeyError, ValueError, BadZipFile) as problem:
        raise InputError(f"{path}: cannot be read ({problem}); expected an .npz with token, name, poses") from problem
    if poses.ndim != 3 or poses.shape[-1] != 3 or not (len(tokens) == len(names) == len(poses)):
        raise InputError(f"{path}: poses: expected (n, T, 3) for {len(tokens)} tokens, found {poses.shape}")
    if not np.isfinite(poses).all():
        bad = int(np.argmax(~np.isfinite(poses).all(axis=(1, 2))))
        raise InputError(f"{path}: scene {tokens[bad]}, {names[bad]}: poses hold NaN or infinity; remove the row")
    plans: dict[str, list[Plan]] = {}
    for token, name, path_poses in zip(tokens, names, poses):
        if str(name) == "human":
            continue
        drawn = plans.setdefault(str(token), [])
        drawn.append(Plan(str(name), path_poses, CHOSEN if not drawn else REFERENCE))
    return plans
