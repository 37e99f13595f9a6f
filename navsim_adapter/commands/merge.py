"""`navsim-adapter merge`: the shards of a score run as the whole table."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="the whole table to write")
    parser.add_argument("shards", nargs="+", metavar="SHARD", help="tables of navsim-adapter score --shard i/n, all n")
    parser.add_argument(
        "--format", choices=("rows", "official"), default="rows", help="one table of rows, or the devkit's layout"
    )


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.scoring.means import mean_lines
    from navsim_adapter.scoring.merge import merge
    from navsim_adapter.scoring.result import check_layout, check_replacing, report, require_scores, write_result

    layout = options.format
    result = merge(options.shards)
    check_layout(options.out, layout, result.table.names, result.facts, options.shards)
    check_replacing(options.out, layout, result.table.names, result.facts)
    files = write_result(options.out, result, layout)
    for line in report(result):
        print(line)
    scored, rows = int(result.table.is_scored.sum()), len(result.table)
    print(f"{scored} of {rows} rows scored with {result.facts.metric} in {files[0]}")
    print("\n".join(mean_lines(result)))
    require_scores(files[0], result)
