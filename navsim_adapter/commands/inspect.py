"""`navsim-adapter inspect`: what a scoring cache holds."""

from __future__ import annotations

import argparse

from navsim_adapter.foundation.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", metavar="DIR", help="a folder written by navsim-adapter cache")
    parser.add_argument("--token", help="print what is kept of this scene")
    parser.add_argument("--verify", action="store_true", help="read every scene and check every file's checksum")


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.inspect import describe_cache, describe_scene, verify_cache

    if options.verify:
        with Progress("scenes") as progress:
            count = verify_cache(options.cache, progress.show)
        print(f"{count} scenes read, all checksums right")
    lines = describe_scene(options.cache, options.token) if options.token else describe_cache(options.cache)
    print("\n".join(lines))
