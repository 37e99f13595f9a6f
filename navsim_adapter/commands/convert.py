"""`navsim-adapter convert`: the scenes of a split, or rendered ones, as an Arrow table."""

from __future__ import annotations

import argparse

from navsim_adapter.commands.options import (
    add_data_arguments,
    add_filter_arguments,
    say_absent,
    selection,
    take_all_rendered,
)
from navsim_adapter.foundation.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    add_filter_arguments(parser)
    parser.add_argument("--two-stage", metavar="FOLDER", help="convert this folder's rendered scenes, not a split's")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the Arrow table")


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.dataset import convert, convert_second_stage

    if options.two_stage:
        take_all_rendered(options)
        with Progress("scenes") as progress:
            content = convert_second_stage(options.two_stage, options.out, lambda done: progress.show(done, None))
        print(f"{content['count']} rendered scenes in {options.out}")
        return
    root, split, chosen = selection(options)
    with Progress("scenes") as progress:
        content = convert(root, split, chosen, options.out, lambda done: progress.show(done, None))
    say_absent(content, split)
    print(f"{content['count']} scenes of {split} in {options.out}")
