"""`navsim-adapter convert`: the scenes of a split, or rendered ones, as an Arrow table; or its logs in two parts."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from navsim_adapter.commands.options import (
    add_data_arguments,
    add_filter_arguments,
    say_absent,
    say_skipped,
    selection,
    selection_123d,
    take_all_rendered,
)
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.progress import Progress
from navsim_adapter.foundation.words import counted

if TYPE_CHECKING:
    from navsim_adapter.dataset import Contents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    add_filter_arguments(parser)
    parser.add_argument("--two-stage", metavar="FOLDER", help="convert this folder's rendered scenes, not a split's")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the Arrow table, or for the filters")
    parser.add_argument("--format", choices=("navsim", "123d"), default="navsim", help="of the logs; 123d: py123d's")
    parser.add_argument(
        "--cameras",
        nargs="+",
        metavar="CAM",
        help="whose pictures the table names (default CAM_F0 CAM_L0 CAM_R0): NAVSIM's eight, of 123d its own, or none",
    )
    parser.add_argument(
        "--future",
        type=float,
        metavar="S",
        help="seconds of the human's drive in the table, and ahead of every scene (default 4)",
    )
    foreign = parser.add_argument_group("logs of 123d")
    foreign.add_argument("--interval", type=float, metavar="S", help="seconds between the human's poses (default 0.5)")
    foreign.add_argument("--sensors", metavar="DIR", help="what the paths of pictures are relative to")
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
    contents = _contents(options)
    if options.format == "123d":
        return _convert_123d(options, contents)
    if options.sensors:
        raise InputError("--sensors: NAVSIM's logs lie beside their pictures; leave it to --format 123d")
    if options.two_stage:
        return _convert_second_stage(options, contents)
    from navsim_adapter.dataset import convert

    root, split, chosen = selection(options)
    with Progress("scenes") as progress:
        content = convert(root, split, chosen, options.out, partial(progress.show, total=None), contents)
    _say(content, split, options.out)


def _contents(options: argparse.Namespace) -> Contents:
    from navsim_adapter.dataset import Contents

    asked = {"future": options.future, "interval": options.interval}
    if options.cameras:
        asked["cameras"] = () if options.cameras == ["none"] else tuple(dict.fromkeys(options.cameras))
    return Contents(**{name: value for name, value in asked.items() if value is not None})


def _convert_second_stage(options: argparse.Namespace, contents: Contents) -> None:
    from navsim_adapter.dataset import convert_second_stage

    take_all_rendered(options)
    if options.future is not None:
        raise InputError("--future: rendered scenes have no human future; leave --two-stage or --future out")
    with Progress("scenes") as progress:
        show = partial(progress.show, total=None)
        content = convert_second_stage(options.two_stage, options.out, show, contents)
    say_skipped(content)
    print(f"{content['count']} rendered scenes in {options.out}")


def _convert_123d(options: argparse.Namespace, contents: Contents) -> None:
    from navsim_adapter.dataset_123d import convert_123d

    if options.two_stage:
        raise InputError("--two-stage: rendered scenes are NAVSIM's; leave --two-stage or --format 123d out")
    root, split, chosen = selection_123d(options)
    with Progress("scenes") as progress:
        show = partial(progress.show, total=None)
        content = convert_123d(root, split, chosen, options.out, show, contents, options.sensors)
    _say(content, split, options.out)
    print(f"not in these logs, for NAVSIM's scorer: {', '.join(content['lacks'])}; score with a scorer of your own")


def _say(content: dict[str, Any], split: str, out: str) -> None:
    say_skipped(content)
    say_absent(content, split)
    print(f"{counted(content['count'], 'scene')} of {split} in {out}")


def _hold_out(options: argparse.Namespace) -> None:
    from navsim_adapter.nuplan.hold_out import hold_out, write_filters

    if options.two_stage:
        raise InputError("--two-stage: rendered scenes have no logs to hold out; leave --two-stage or --hold-out out")
    for name in ("cameras", "future", "interval", "sensors"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name}: belongs to a table, and --hold-out writes none; give it with --filter")
    if options.format != "navsim":
        raise InputError("--hold-out: divides NAVSIM's logs; of 123d name logs in two filter files (log_names)")
    check_range("--hold-out", options.hold_out, 1)
    seed = options.seed or 0
    root, split, chosen = selection(options)
    with Progress("logs") as progress:
        parts = hold_out(root, split, chosen, options.hold_out, seed, progress.show)
    said = [
        f"{file} {counted(part.scenes, 'scene')} of {counted(part.logs, 'log')}"
        for file, part in zip(write_filters(options.out, parts), parts)
    ]
    print(f"{split} in two by logs, seed {seed}: {', '.join(said)}; give each to convert and cache with --filter")
