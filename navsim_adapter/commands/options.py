"""Options that commands share. The environment is read here and nowhere else."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range

if TYPE_CHECKING:
    from navsim_adapter.nuplan.root import DataRoot
    from navsim_adapter.nuplan.scenes import SceneFilter


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="ROOT", help="dataset root; default: $OPENSCENE_DATA_ROOT")
    parser.add_argument(
        "--split", help="folder under navsim_logs (mini, trainval, test), or navmini, navtrain, navtest"
    )


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filter", metavar="YAML", help="a scene filter file of the devkit")
    parser.add_argument("--max-scenes", type=int, metavar="N", help="stop after N scenes")


def say_absent(content: Mapping[str, Any], split: str) -> None:
    """Name what the filter lists and the split lacks: a table of half a split must not pass for the whole."""
    for key, names in content["absent"].items():
        if names:
            total = len(content["filter"][key])
            print(
                f"absent: {len(names)} of the filter's {total} {key} are not in {split}, first {names[0]}",
                file=sys.stderr,
            )


def say_skipped(content: Mapping[str, Any]) -> None:
    """Name the scenes that have no row or no cache, and why."""
    for item in content.get("skipped", ()):
        print(f"skipped: {item['reason']}", file=sys.stderr)


def root_of(options: argparse.Namespace) -> DataRoot:
    from navsim_adapter.nuplan.root import data_root

    return data_root(options.data, os.environ)


def take_all_rendered(options: argparse.Namespace) -> None:
    if options.split or options.filter or options.max_scenes is not None:
        raise InputError("--two-stage: takes all rendered scenes; leave --split, --filter and --max-scenes out")


def selection_123d(options: argparse.Namespace) -> tuple[str, str, SceneFilter]:
    """Folder that py123d has written, split under its `logs`, and filter."""
    from navsim_adapter.nuplan.scenes import SceneFilter

    root = options.data or os.environ.get("PY123D_DATA_ROOT")
    if not root:
        raise InputError("--data: not given; name the folder that py123d has written, or set $PY123D_DATA_ROOT")
    if not options.split:
        raise InputError("--split: not given; name the folder under logs, such as nuplan_val")
    chosen = SceneFilter.from_yaml(options.filter) if options.filter else SceneFilter()
    return root, options.split, _first(chosen, options.max_scenes)


def _first(chosen: SceneFilter, count: int | None) -> SceneFilter:
    from dataclasses import replace

    check_range("--max-scenes", count, 1)
    return chosen if count is None else replace(chosen, max_scenes=count)


def selection(options: argparse.Namespace) -> tuple[DataRoot, str, SceneFilter]:
    """Root, split folder and filter that the options name."""
    from navsim_adapter.nuplan.scenes import LISTED, split_filter, split_name

    if not options.split:
        raise InputError("--split: not given; name the folder under navsim_logs, or navmini, navtrain, navtest")
    split, chosen = split_filter(options.split, options.filter)
    name = split_name(options.split)
    if name in LISTED and chosen.tokens is None and chosen.log_names is None:
        print(
            f"note: this takes every scene of {split}; the scenes that are {name} are listed in the devkit's "
            f"scene_filter/{name}.yaml, give it with --filter",
            file=sys.stderr,
        )
    return root_of(options), split, _first(chosen, options.max_scenes)
