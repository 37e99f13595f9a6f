"""`navsim-adapter render`: scenes of a cache as pictures, with trajectories of a file beside the human's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from navsim_adapter.cache.store import open_cache
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_once
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.render import CHOSEN, HUMAN, REFERENCE, Plan, picture, seen_by
from navsim_adapter.scene_cache import EPDMS, PDMS, SceneCache
from navsim_adapter.trajectories import Trajectories, read_trajectories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `navsim-adapter render`."""
    parser.add_argument("--cache", type=Path, required=True, help="folder written by `navsim-adapter cache`")
    parser.add_argument("--tokens", nargs="*", default=None, help="scenes to draw (default: the first --limit ones)")
    parser.add_argument("--limit", type=int, default=20, help="how many scenes without --tokens (default 20)")
    parser.add_argument(
        "--trajectories", type=Path, default=None, help=".npz with token, name, poses (M, T, 3): drawn beside the human"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for one PNG per scene")


def run(args: argparse.Namespace) -> int:
    """Draw the chosen scenes, one `<token>.png` each."""
    check_range("--limit", args.limit, 1)
    scenes: Mapping[str, SceneCache] = open_cache(args.cache)
    tokens = list(args.tokens) if args.tokens else list(scenes)[: args.limit]
    unknown = [token for token in tokens if token not in scenes]
    if unknown:
        raise InputError(f"{args.cache}: no scene {unknown[0]} among {len(scenes)}; check --tokens")
    plans = {}
    if args.trajectories:
        table = read_trajectories(args.trajectories)
        if not set(tokens) & set(table.tokens):
            raise InputError(
                f"{args.trajectories}: none of its trajectories is of the {len(tokens)} scenes to draw (first: "
                f"{table.tokens[0]}); name its scenes with --tokens, or the cache that holds them"
            )
        plans = plans_of(table)
    files = {token: args.out / f"{token}.png" for token in tokens}
    for token in sorted(tokens, key=lambda token: not files[token].exists()):  # another picture is met first
        scene = scenes[token]
        scene = seen_by(scene, PDMS if scene.versions & PDMS else EPDMS)
        write_once(files[token], picture(scene, scene_plans(scene, plans.get(token, []))))
    is_part = len(tokens) < len(scenes) and not args.tokens
    of_all = f" of {len(scenes)} scenes (--limit, --tokens)" if is_part else ""
    print(f"{len(tokens)} pictures{of_all} in {args.out}")
    return 0


def scene_plans(cache: SceneCache, others: Sequence[Plan]) -> list[Plan]:
    """The human's future, where the log has one, before `others`."""
    human = [] if cache.human_future is None else [Plan("human", cache.human_future, HUMAN)]
    return [*human, *others]


def plans_of(table: Trajectories) -> dict[str, list[Plan]]:
    """Token -> the plans of its rows; the human is left to the cache."""
    plans: dict[str, list[Plan]] = {}
    for token, name, poses in zip(table.tokens, table.names, table.poses):
        if name != "human":
            drawn = plans.setdefault(token, [])
            drawn.append(Plan(name, poses, CHOSEN if not drawn else REFERENCE))
    return plans
