"""`navsim-adapter convert`: the scenes of a split, or rendered ones, as an Arrow table; or its logs in two parts."""

from __future__ import annotations

import argparse

from navsim_adapter.commands.options import (
    add_data_arguments,
    add_filter_arguments,
    say_absent,
    say_skipped,
    selection,
    take_all_rendered,
)
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    add_filter_arguments(parser)
    parser.add_argument("--two-stage", metavar="FOLDER", help="convert this folder's rendered scenes, not a split's")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the Arrow table, or for the filters")
    parser.add_argument(
        "--cameras",
        nargs="+",
        metavar="CAM",
        help="whose pictures the table names: any of the eight (default CAM_F0 CAM_L0 CAM_R0)",
    )
    parser.add_argument(
        "--future",
        type=float,
        metavar="S",
        help="seconds of the human's drive in the table, and ahead of every scene (default 4)",
    )
    apart = parser.add_argument_group("logs to choose on, kept from training (writes no table)")
    apart.add_argument(
        "--hold-out",
        type=int,
        metavar="N",
        help="write DIR/train.yaml and DIR/held_out.yaml, filters of N whole logs less"
        " and of those N; give each to convert and cache with --filter",
    )
    apart.add_argument("--seed", type=int, metavar="S", help="which logs are held out (default 0)")


def run(options: argparse.Namespace) -> None:
    if options.hold_out is not None:
        return _hold_out(options)
    if options.seed is not None:
        raise InputError("--seed: chooses the logs of --hold-out N; add it, or leave --seed out")
    from navsim_adapter.dataset import Contents, convert, convert_second_stage

    asked = {"cameras": options.cameras and tuple(options.cameras), "future": options.future}
    contents = Contents(**{name: value for name, value in asked.items() if value is not None})
    if options.two_stage:
        take_all_rendered(options)
        if options.future is not None:
            raise InputError("--future: rendered scenes have no human future; leave --two-stage or --future out")
        with Progress("scenes") as progress:
            content = convert_second_stage(
                options.two_stage, options.out, lambda done: progress.show(done, None), contents
            )
        say_skipped(content)
        print(f"{content['count']} rendered scenes in {options.out}")
        return
    root, split, chosen = selection(options)
    with Progress("scenes") as progress:
        content = convert(root, split, chosen, options.out, lambda done: progress.show(done, None), contents)
    say_skipped(content)
    say_absent(content, split)
    print(f"{content['count']} scenes of {split} in {options.out}")


def _hold_out(options: argparse.Namespace) -> None:
    from navsim_adapter.nuplan.hold_out import hold_out, write_filters

    if options.two_stage:
        raise InputError("--two-stage: rendered scenes have no logs to hold out; leave --two-stage or --hold-out out")
    if options.cameras or options.future is not None:
        raise InputError("--cameras, --future: belong to a table and --hold-out writes none; give them with --filter")
    check_range("--hold-out", options.hold_out, 1)
    seed = options.seed or 0
    root, split, chosen = selection(options)
    with Progress("logs") as progress:
        parts = hold_out(root, split, chosen, options.hold_out, seed, progress.show)
    said = [
        f"{file} {part.scenes} scenes of {part.logs} logs"
        for file, part in zip(write_filters(options.out, parts), parts)
    ]
    print(f"{split} in two by logs, seed {seed}: {', '.join(said)}; give each to convert and cache with --filter")
