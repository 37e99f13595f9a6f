"""`navsim-adapter cache`: the scoring cache of a split, or of rendered scenes."""

from __future__ import annotations

import argparse
import os

from navsim_adapter.commands.options import (
    add_data_arguments,
    add_filter_arguments,
    root_of,
    say_absent,
    say_skipped,
    selection,
    take_all_rendered,
)
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.progress import Progress
from navsim_adapter.foundation.words import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    add_filter_arguments(parser)
    parser.add_argument("--two-stage", metavar="FOLDER", help="cache this folder's rendered scenes, not a split's")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the scoring cache")
    parser.add_argument(
        "--reference-memory",
        choices=("none", "log"),
        default="none",
        help="log: PDM-Closed remembers what stood on the ego, as the devkit's builder does; one builder a log",
    )
    parser.add_argument(
        "--first-stage",
        metavar="DIR",
        help="the first stage's cache, whose logs rendered scenes continue; needs a memory",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one log each")


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.folder import build_cache

    check_range("--workers", options.workers, 1)
    if options.two_stage:
        _cache_second_stage(options)
        return
    if options.first_stage:
        raise InputError("--first-stage: belongs to rendered scenes; add --two-stage FOLDER")
    root, split, chosen = selection(options)
    with Progress("logs") as progress:
        content = build_cache(
            root,
            split,
            chosen,
            options.out,
            options.workers,
            lambda done, total, _: progress.show(done, total),
            options.reference_memory,
        )
    say_skipped(content)
    say_absent(content, split)
    print(f"{counted(content['count'], 'scene')} of {split} in {options.out}, {len(content['skipped'])} skipped")


def _cache_second_stage(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.second_stage import cache_second_stage

    take_all_rendered(options)
    if (options.reference_memory == "log") != bool(options.first_stage):
        raise InputError(
            "--reference-memory log: of rendered scenes goes on where their logs' recorded ones end; give both it and "
            "--first-stage, a cache made with it"
        )
    with Progress("scenes") as progress:
        content = cache_second_stage(
            options.two_stage, root_of(options).maps, options.out, options.workers, progress.show, options.first_stage
        )
    say_skipped(content)
    print(f"{content['count']} rendered scenes in {options.out}, {len(content['skipped'])} skipped")
