"""`navsim-adapter vocabulary`: the sub-scores of one set of trajectories in every scene of a cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from navsim_adapter.commands.score import METRICS
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.words import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", required=True, metavar="DIR", help="the scoring cache of the split")
    parser.add_argument("--vocabulary", required=True, metavar="V.npy", help="poses (K, T, 3): x, y, heading")
    parser.add_argument(
        "--interval", type=float, metavar="S", help="seconds between poses; default: 0.5 for 8 poses, 0.1 for 40"
    )
    parser.add_argument("--metric", choices=METRICS, default="pdms", help="PDMS v1.1 (default) or EPDMS v2.2")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the table, a Parquet file a log")
    parser.add_argument("--workers", type=int, default=1, help="processes, a log each")
    parser.add_argument("--shard", metavar="I/N", help="score the I-th of N parts into the same --out")


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.foundation.progress import Progress
    from navsim_adapter.foundation.shard import Shard
    from navsim_adapter.scoring.vocabulary import Run, read_vocabulary, score_vocabulary

    check_range("--workers", options.workers, 1)
    shard = Shard.parse(options.shard) if options.shard else None
    wanted = Run(
        options.cache, read_vocabulary(options.vocabulary, options.interval), options.metric, Path(options.out)
    )
    with Progress("logs") as progress:
        content = score_vocabulary(wanted, shard, options.workers, print, progress.show)
    if content is None:
        print(f"shard {shard}: done; other shards still have logs to score")
        return
    for reason in content["not_scored"].values():
        print(f"not scored: {reason}", file=sys.stderr)
    print(
        f"{content['trajectories']} trajectories in {counted(content['scenes'], 'scene')} scored with "
        f"{content['metric']} in "
        f"{options.out}"
    )
