"""`navsim-adapter baseline`: trajectories of a planner that needs no weights."""

from __future__ import annotations

import argparse
import sys

from navsim_adapter.baselines import BASELINES, plan_all
from navsim_adapter.foundation.progress import Progress
from navsim_adapter.trajectories import write_trajectories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=sorted(BASELINES), help="which planner")
    parser.add_argument("--cache", required=True, metavar="DIR", help="a folder written by navsim-adapter cache")
    parser.add_argument("--out", required=True, metavar="T.npz", help="table for navsim-adapter score")


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.cache.store import open_cache

    cache = open_cache(options.cache)
    with Progress("scenes") as progress:
        plans = plan_all(options.name, cache, progress.show)
    write_trajectories(options.out, options.name, plans)
    if len(plans) < len(cache):
        print(f"{len(cache) - len(plans)} scenes have no recorded future and are left out", file=sys.stderr)
    print(f"{len(plans)} trajectories of {options.name} in {options.out}")
