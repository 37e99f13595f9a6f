"""The command `navsim-adapter`. Environment variables are read here and nowhere else; nothing is computed here.

A command is an entry of `COMMANDS`: a sentence, a function that declares its arguments, a function that runs it.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from navsim_adapter import __version__
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.exits import nobody_reads, one_line
from navsim_adapter.foundation.option_checks import check_range, local_path
from navsim_adapter.foundation.progress import Progress

if TYPE_CHECKING:
    from navsim_adapter.nuplan.root import DataRoot
    from navsim_adapter.nuplan.scenes import SceneFilter


@dataclass(frozen=True)
class Command:
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an InputError, or what the system refuses, becomes one line on stderr and exit status 2."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(words[0] if words else "").parse_args(words)
    try:
        _check_paths(options)
        COMMANDS[options.command].run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        return nobody_reads()
    except (InputError, OSError) as problem:
        if options.debug:
            traceback.print_exc()
        print(f"navsim-adapter {options.command}: {one_line(problem)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("navsim-adapter: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser(chosen: str) -> argparse.ArgumentParser:
    """The parser; only the chosen command declares its arguments, so that no other one is imported."""
    parser = argparse.ArgumentParser("navsim-adapter", description="NAVSIM's files and scores, without the devkit.")
    parser.add_argument("--version", action="version", version=f"navsim-adapter {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        child = commands.add_parser(name, help=command.help, description=command.help)
        child.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == chosen:
            command.arguments(child)
    return parser


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="ROOT", help="dataset root; default: $OPENSCENE_DATA_ROOT")
    parser.add_argument(
        "--split", help="folder under navsim_logs (mini, trainval, test), or navmini, navtrain, navtest"
    )


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filter", metavar="YAML", help="a scene filter file of the devkit")
    parser.add_argument("--max-scenes", type=int, metavar="N", help="stop after N scenes")


# -- convert -----------------------------------------------------------------------------------------------------------


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    add_filter_arguments(parser)
    parser.add_argument("--two-stage", metavar="FOLDER", help="convert this folder's rendered scenes, not a split's")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the Arrow table")


def _convert(options: argparse.Namespace) -> None:
    from navsim_adapter.dataset import convert, convert_second_stage

    if options.two_stage:
        _take_all_rendered(options)
        with Progress("scenes") as progress:
            content = convert_second_stage(options.two_stage, options.out, lambda done: progress.show(done, None))
        print(f"{content['count']} rendered scenes in {options.out}")
        return
    root, split, chosen = _selection(options)
    with Progress("scenes") as progress:
        content = convert(root, split, chosen, options.out, lambda done: progress.show(done, None))
    _say_absent(content, split)
    print(f"{content['count']} scenes of {split} in {options.out}")


def _say_absent(content: Mapping[str, Any], split: str) -> None:
    """Name what the filter lists and the split lacks: a table of half a split must not pass for the whole."""
    for key, names in content["absent"].items():
        if names:
            total = len(content["filter"][key])
            print(
                f"absent: {len(names)} of the filter's {total} {key} are not in {split}, first {names[0]}",
                file=sys.stderr,
            )


# -- cache -------------------------------------------------------------------------------------------------------------


def _cache_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    add_filter_arguments(parser)
    parser.add_argument("--two-stage", metavar="FOLDER", help="cache this folder's rendered scenes, not a split's")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the scoring cache")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one log each")


def _cache(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.folder import build_cache

    check_range("--workers", options.workers, 1)
    if options.two_stage:
        _cache_second_stage(options)
        return
    root, split, chosen = _selection(options)
    with Progress("logs") as progress:
        content = build_cache(
            root, split, chosen, options.out, options.workers, lambda done, total, _: progress.show(done, total)
        )
    for item in content["skipped"]:
        print(f"skipped: {item['reason']}", file=sys.stderr)
    _say_absent(content, split)
    print(f"{content['count']} scenes of {split} in {options.out}, {len(content['skipped'])} skipped")


def _cache_second_stage(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.second_stage import cache_second_stage

    _take_all_rendered(options)
    with Progress("scenes") as progress:
        content = cache_second_stage(
            options.two_stage, root_of(options).maps, options.out, options.workers, progress.show
        )
    for item in content["skipped"]:
        print(f"skipped: {item['reason']}", file=sys.stderr)
    print(f"{content['count']} rendered scenes in {options.out}, {len(content['skipped'])} skipped")


# -- import ------------------------------------------------------------------------------------------------------------


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tree", metavar="TREE", help="an official metric cache: <log>/unknown/<token>/metric_cache.pkl")
    parser.add_argument("--other", metavar="TREE", help="the same scenes cached by the other devkit version")
    parser.add_argument("--maps", metavar="DIR", help="map root, for EPDMS in simulated traffic")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the scoring cache")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one log each")


def _import(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.official_folder import import_official

    check_range("--workers", options.workers, 1)
    with Progress("logs") as progress:
        content = import_official(
            options.tree, options.out, options.other, options.maps, options.workers, progress.show
        )
    print(f"{content['count']} scenes of {options.tree} in {options.out}")


# -- inspect -----------------------------------------------------------------------------------------------------------


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", metavar="DIR", help="a folder written by navsim-adapter cache")
    parser.add_argument("--token", help="print what is kept of this scene")
    parser.add_argument("--verify", action="store_true", help="read every scene and check every file's checksum")


def _inspect(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.inspect import describe_cache, describe_scene, verify_cache

    if options.verify:
        print(f"{verify_cache(options.cache)} scenes read, all checksums right")
    lines = describe_scene(options.cache, options.token) if options.token else describe_cache(options.cache)
    print("\n".join(lines))


# -- shared ------------------------------------------------------------------------------------------------------------


_PATHS = (
    "out", "file", "shards", "data", "filter", "cache", "trajectories", "two_stage", "second_stage_trajectories",
    "second_stage_cache", "mapping", "tree", "other", "maps", "expect",
)  # fmt: skip


def _check_paths(options: argparse.Namespace) -> None:
    """Every file and folder named is one of this machine, whatever the command does with it."""
    for name in _PATHS:
        value = getattr(options, name, None)
        for path in value if isinstance(value, list) else [value]:
            if path is not None:
                local_path(f"--{name.replace('_', '-')}", path)


def root_of(options: argparse.Namespace) -> DataRoot:
    from navsim_adapter.nuplan.root import data_root

    return data_root(options.data, os.environ)


def _take_all_rendered(options: argparse.Namespace) -> None:
    if options.split or options.filter or options.max_scenes is not None:
        raise InputError("--two-stage: takes all rendered scenes; leave --split, --filter and --max-scenes out")


def _selection(options: argparse.Namespace) -> tuple[DataRoot, str, SceneFilter]:
    """Root, split folder and filter that the options name."""
    from dataclasses import replace

    from navsim_adapter.nuplan.scenes import LISTED, split_filter

    if not options.split:
        raise InputError("--split: not given; name the folder under navsim_logs, or navmini, navtrain, navtest")
    split, chosen = split_filter(options.split, options.filter)
    if options.split in LISTED and not options.filter:
        print(
            f"note: this takes every scene of {split}; the scenes that are {options.split} are listed in the devkit's "
            f"{options.split}.yaml, give it with --filter",
            file=sys.stderr,
        )
    if options.max_scenes is not None:
        check_range("--max-scenes", options.max_scenes, 1)
        chosen = replace(chosen, max_scenes=options.max_scenes)
    return root_of(options), split, chosen


def _leaf(module: str, help: str) -> Command:
    """A command that lives in a module of its own with `add_arguments` and `run`, imported when asked for."""
    from importlib import import_module

    return Command(
        help,
        lambda parser: import_module(module).add_arguments(parser),
        lambda options: import_module(module).run(options),
    )


COMMANDS: dict[str, Command] = {
    "synth": _leaf("navsim_adapter.synthetic.command", "Make a small world in NAVSIM's formats."),
    "convert": Command(
        "Write the scenes of a split, or rendered ones, as an Arrow table.", _convert_arguments, _convert
    ),
    "cache": Command("Build the scoring cache of a split from logs and maps.", _cache_arguments, _cache),
    "import": Command("Turn the devkit's metric cache into ours.", _import_arguments, _import),
    "score": _leaf("navsim_adapter.score_command", "Score trajectories with an official metric."),
    "merge": _leaf("navsim_adapter.shards", "Put the shards of a score run together."),
    "inspect": Command("Say what a scoring cache holds.", _inspect_arguments, _inspect),
    "baseline": _leaf("navsim_adapter.baselines", "Trajectories of a planner that needs no weights."),
    "submission": _leaf("navsim_adapter.submission_command", "Write or check an official submission file."),
    "render": _leaf("navsim_adapter.render_command", "Draw scenes and trajectories from above."),
}

if __name__ == "__main__":
    sys.exit(main())
