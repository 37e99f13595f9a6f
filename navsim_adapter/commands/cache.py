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
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    add_filter_arguments(parser)
    parser.add_argument("--two-stage", metavar="FOLDER", help="cache this folder's rendered scenes, not a split's")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the scoring cache")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one log each")


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.folder import build_cache

    check_range("--workers", options.workers, 1)
    if options.two_stage:
        _cache_second_stage(options)
        return
    root, split, chosen = selection(options)
    with Progress("logs") as progress:
        content = build_cache(
            root, split, chosen, options.out, options.workers, lambda done, total, _: progress.show(done, total)
        )
    say_skipped(content)
    say_absent(content, split)
    print(f"{content['count']} scenes of {split} in {options.out}, {len(content['skipped'])} skipped")


def _cache_second_stage(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.second_stage import cache_second_stage

    take_all_rendered(options)
    with Progress("scenes") as progress:
        content = cache_second_stage(
            options.two_stage, root_of(options).maps, options.out, options.workers, progress.show
        )
    say_skipped(content)
    print(f"{content['count']} rendered scenes in {options.out}, {len(content['skipped'])} skipped")
