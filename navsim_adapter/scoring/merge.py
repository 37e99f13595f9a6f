"""A score run in n parts, for job arrays: which units a shard takes, and how shards become the whole table again.

Rows of a shard carry their place in the whole input, so merging sorts and writes; figures are written to the last
digit, and what is merged is bit for bit what one run would have written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.shard import Shard
from navsim_adapter.scoring.result import Result, read_result
from navsim_adapter.scoring.table import ScoreTable


def merge(shards: Sequence[str | Path]) -> Result:
    """The whole of all n shards of one run; raises InputError where one is missing, there twice, or of another run."""
    parts = {Path(path): read_result(path) for path in shards}
    first = next(iter(parts.values())).facts
    seen: dict[int, Path] = {}
    for path, part in parts.items():
        assert part.facts.shard is not None
        if part.facts.inputs != first.inputs:
            raise InputError(f"{path}: was made of other inputs than {next(iter(parts))}; merge shards of one run")
        shard = Shard.parse(part.facts.shard)
        if shard.index in seen:
            raise InputError(f"{path}: is shard {shard}, and so is {seen[shard.index]}; give each shard once")
        seen[shard.index] = path
        if shard.count != Shard.parse(str(first.shard)).count:
            raise InputError(f"{path}: is shard {shard}, {next(iter(parts))} is {first.shard}; merge shards of one run")
    missing = [index for index in range(1, shard.count + 1) if index not in seen]
    if missing:
        named = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        raise InputError(f"shards {named} of {shard.count} are not given; score them, or name their files too")
    return _whole([parts[seen[index]] for index in sorted(seen)])


def _whole(parts: Sequence[Result]) -> Result:
    facts = parts[0].facts
    rows = np.concatenate([_rows(part) for part in parts])
    absent = np.setdiff1d(np.arange(facts.total), rows)
    if len(absent):
        raise InputError(
            f"{len(absent)} of {facts.total} rows are in no shard (first: row {absent[0]} of the trajectories); their "
            "tokens are no scene of the split; check --split and --data"
        )
    if len(rows) != facts.total:
        raise InputError(f"{len(rows) - facts.total} rows are in two shards; the shards do not belong together")
    order = np.argsort(rows)
    labels = {name: [text for part in parts for text in part.table.labels[name]] for name in parts[0].table.labels}
    table = ScoreTable(
        {name: [texts[row] for row in order] for name, texts in labels.items()},
        parts[0].table.columns,
        np.concatenate([part.table.figures for part in parts])[order],
    )
    entries = None
    if facts.entries is not None:
        entries = {place: entry for part in parts for place, entry in (part.facts.entries or {}).items()}
    reasons = {row: reason for part in parts for row, reason in part.reasons.items()}
    return Result(replace(facts, shard=None, entries=entries), table, reasons)


def _rows(part: Result) -> np.ndarray:
    assert part.table.rows is not None
    return part.table.rows
