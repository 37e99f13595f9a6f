"""`navsim-adapter import`: the devkit's metric cache as ours."""

from __future__ import annotations

import argparse
import os
import sys

from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.progress import Progress
from navsim_adapter.foundation.words import counted

_VERSIONS = (
    "note: caches of devkit 2.0 and 1.0 look like those of 2.0.1 to 2.2 and 1.1 but hold other reference plans, so ego "
    "progress can differ; cache anew if they may be so old"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tree", metavar="TREE", help="an official metric cache: <log>/unknown/<token>/metric_cache.pkl")
    parser.add_argument("--other", metavar="TREE", help="the same scenes cached by the other devkit version")
    parser.add_argument("--maps", metavar="DIR", help="map root, for EPDMS in simulated traffic")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the scoring cache")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one log each")


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.official_folder import import_official

    check_range("--workers", options.workers, 1)
    with Progress("logs") as progress:
        content = import_official(
            options.tree, options.out, options.other, options.maps, options.workers, progress.show
        )
    for item in content["skipped"]:
        print(f"absent: {item['reason']}", file=sys.stderr)
    print(_VERSIONS, file=sys.stderr)
    print(f"{counted(content['count'], 'scene')} of {options.tree} in {options.out}")
