"""`navsim-adapter synth`: write synthetic worlds in NAVSIM's formats."""

from __future__ import annotations

import argparse
import os

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.progress import Progress
from navsim_adapter.synthetic.synthesize import DEFAULT_SCENES, LAPSES, SCENES_PER_LOG, synthesize

MOST_LAPSES = 100.0
SPLITS = {"train": "trainval", "validation": "mini", "test": "test"}  # option -> folder under navsim_logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="data root to write (navsim_logs, sensor_blobs, maps)")
    parser.add_argument("--seed", type=int, default=0, help="decides everything (default 0)")
    for option, split in SPLITS.items():
        default = DEFAULT_SCENES[split]
        parser.add_argument(f"--{option}", type=int, default=default, help=f"scenes in {split} (default {default})")
    parser.add_argument("--lapses", type=float, default=LAPSES, help=f"the human's lapses per 10 s (default {LAPSES})")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; the result is the same")


def run(args: argparse.Namespace) -> int:
    for option in ("seed", *SPLITS):
        check_range(f"--{option}", getattr(args, option), 0)
    check_range("--lapses", args.lapses, 0, MOST_LAPSES)
    check_range("--workers", args.workers, 1)
    splits = {split: getattr(args, option) for option, split in SPLITS.items() if getattr(args, option) > 0}
    if not splits:
        raise InputError(f"--{', --'.join(SPLITS)}: all are 0; ask for one scene at least")
    with Progress("logs") as progress:
        made = synthesize(args.out, args.seed, splits, SCENES_PER_LOG, args.lapses, args.workers, progress.show)
    counts = ", ".join(f"{split} {scenes}" for split, scenes in splits.items())
    print(f"synth: {'wrote' if made else 'complete already:'} {args.out} (scenes: {counts}; seed {args.seed})")
    return 0
