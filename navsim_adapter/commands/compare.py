"""`navsim-adapter compare`: two score tables row by row, and why they differ."""

from __future__ import annotations

import argparse

from navsim_adapter.foundation.option_checks import spare_inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a table of navsim-adapter score, or the devkit's CSV of any version")
    parser.add_argument("b", metavar="B", help="another, of the same scenes")
    parser.add_argument("--planner", metavar="NAME", help="compare this planner alone")
    parser.add_argument("--out", metavar="PAGE", help="also write the comparison as an HTML page")


def run(options: argparse.Namespace) -> None:
    from navsim_adapter.foundation.files import write_text
    from navsim_adapter.scoring.compare import compare, lines_of
    from navsim_adapter.scoring.compare_page import page_of

    if options.out:
        spare_inputs([options.out], [options.a, options.b])
    found = compare(options.a, options.b, options.planner)
    print("\n".join(lines_of(found)))
    if options.out:
        write_text(options.out, page_of(found))
        print(f"page: {options.out}")
