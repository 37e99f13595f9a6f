"""Closed-loop runs of several drivers as one table of Markdown, as in docs/closed-loop.md.

python benchmarks/closed_loop.py runs/demo/closed_loop/*
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from navsim_adapter.closed_loop.summary import FIGURES, said
from navsim_adapter.foundation.files import read_json

HEADS = (
    "score",
    "at-fault collision",
    "off the road",
    "wrong way",
    "red light",
    "progress",
    "of PDM-Closed's",
    "comfort",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="written by navsim-adapter closed-loop")
    print("| driver | drives |", " | ".join(HEADS), "|")
    print("|---|---|" + "---|" * len(HEADS))
    for folder in parser.parse_args().folders:
        found = read_json(folder / "summary.json")
        print(f"| {found['driver']} | {found['drives']} |", " | ".join(said(found["figures"][f]) for f in FIGURES), "|")


if __name__ == "__main__":
    main()
