"""`navsim-adapter inspect`: what a scoring cache or a score table holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.progress import Progress
from navsim_adapter.foundation.words import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", metavar="DIR", help="a folder of navsim-adapter cache or import, or a score table")
    parser.add_argument("--token", help="print what is kept of this scene")
    parser.add_argument(
        "--verify", action="store_true", help="read every scene, check every checksum, refuse what a failed fit made"
    )


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.inspect import describe_cache, describe_scene, verify_cache

    if Path(options.cache).is_file():
        _inspect_table(options)
        return
    if options.verify:
        with Progress("scenes") as progress:
            count = verify_cache(options.cache, progress.show)
        print(f"{counted(count, 'scene')} read, all checksums right, none made by a failed fit")
    lines = describe_scene(options.cache, options.token) if options.token else describe_cache(options.cache)
    print("\n".join(lines))


def _inspect_table(options: argparse.Namespace) -> None:
    from navsim_adapter.scoring.foreign_table import describe_table, read_scores, require_sound

    if options.token:
        raise InputError("--token: is for a cache; a score table has a row a scene, look into it")
    table = read_scores(options.cache)
    if options.verify:
        require_sound(table)
    print("\n".join(describe_table(table)))
