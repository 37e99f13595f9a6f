"""`navsim-adapter render`: scenes of a cache as pictures, with trajectories of a file beside the human's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from navsim_adapter import __version__
from navsim_adapter.cache.store import open_cache
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, making, sha256, stamp, write_once
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.progress import Progress
from navsim_adapter.foundation.words import counted
from navsim_adapter.render import CHOSEN, HUMAN, REFERENCE, Plan, picture, seen_by
from navsim_adapter.scene_cache import EPDMS, PDMS, SceneCache
from navsim_adapter.trajectories import Trajectories, read_trajectories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `navsim-adapter render`."""
    parser.add_argument("--cache", type=Path, required=True, help="folder written by `navsim-adapter cache`")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tokens", nargs="+", default=None, help="scenes to draw (default: the first --limit ones)")
    which.add_argument("--limit", type=int, default=20, help="how many scenes without --tokens (default 20)")
    which.add_argument("--all", action="store_true", help="every scene; the same command goes on where it was stopped")
    parser.add_argument(
        "--trajectories", type=Path, default=None, help=".npz with token, name, poses (M, T, 3): drawn beside the human"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for one PNG per scene")


def run(args: argparse.Namespace) -> int:
    """Draw the chosen scenes, one `<token>.png` each."""
    check_range("--limit", args.limit, 1)
    scenes: Mapping[str, SceneCache] = open_cache(args.cache)
    tokens = list(args.tokens or scenes) if args.tokens or args.all else list(scenes)[: args.limit]
    unknown = [token for token in tokens if token not in scenes]
    if unknown:
        raise InputError(f"{args.cache}: no scene {unknown[0]} among {len(scenes)}; check --tokens")
    plans = _plans(args.trajectories, tokens) if args.trajectories else {}
    files = {token: args.out / f"{token}.png" for token in tokens}
    if args.all:
        _draw_all(args, scenes, files, plans)
    else:
        ordered = sorted(tokens, key=lambda token: not files[token].exists())  # another picture is met first
        _draw(scenes, {token: files[token] for token in ordered}, plans)
    is_part = len(tokens) < len(scenes) and not args.tokens
    of_all = f" of {counted(len(scenes), 'scene')} (--limit, --tokens, --all)" if is_part else ""
    print(f"{counted(len(tokens), 'picture')}{of_all} in {args.out}")
    return 0


def _plans(path: Path, tokens: Sequence[str]) -> Mapping[str, Sequence[Plan]]:
    table = read_trajectories(path)
    if not set(tokens) & set(table.tokens):
        raise InputError(
            f"{path}: none of its trajectories is of the {counted(len(tokens), 'scene')} to draw (first: "
            f"{table.tokens[0]}); name "
            "its scenes with --tokens, or the cache that holds them"
        )
    return plans_of(table)


def _draw_all(
    args: argparse.Namespace,
    scenes: Mapping[str, SceneCache],
    files: Mapping[str, Path],
    plans: Mapping[str, Sequence[Plan]],
) -> None:
    """A folder that says what it was made of, so that what a killed run has drawn need not be drawn again."""
    made_by = {
        "command": "navsim-adapter render --all",
        "version": __version__,
        "cache": stamp(args.cache),
        "trajectories": sha256(args.trajectories) if args.trajectories else None,
    }
    with making(args.out, made_by) as is_open:
        if is_open:
            missing = {token: path for token, path in files.items() if not path.is_file()}
            _draw(scenes, missing, plans, len(files) - len(missing))
            finish(args.out, made_by)


def _draw(
    scenes: Mapping[str, SceneCache],
    files: Mapping[str, Path],
    plans: Mapping[str, Sequence[Plan]],
    before: int = 0,
) -> None:
    """before: pictures that are there already."""
    with Progress("pictures") as progress:
        for done, (token, path) in enumerate(files.items(), before):
            progress.show(done, before + len(files))
            scene = scenes[token]
            scene = seen_by(scene, PDMS if scene.versions & PDMS else EPDMS)
            write_once(path, picture(scene, scene_plans(scene, plans.get(token, []))))


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
