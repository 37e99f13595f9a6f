"""What a score run leaves behind: the table, a two-stage run's summary, and `<out>.json`, which says what made them.

The JSON is written last and holds the checksums of the others; a result without it is unfinished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from navsim_adapter import __version__
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import differs, read_json, sha256, write_json
from navsim_adapter.foundation.option_checks import spare_inputs
from navsim_adapter.foundation.words import counted
from navsim_adapter.scoring.official_table import official_paths, write_official
from navsim_adapter.scoring.scorer import SCORE_UNFILTERED, UNFILTERED, family_of
from navsim_adapter.scoring.table import ScoreTable, write_table
from navsim_adapter.scoring.two_stage import Entry
from navsim_adapter.scoring.two_stage_table import Summary, summarise, write_summaries

Layout = Literal["rows", "official"]
LAYOUTS: tuple[Layout, ...] = ("rows", "official")
_PLACES = ("trajectories", "second_stage_trajectories")  # keys that say where tables lie


@dataclass(frozen=True)
class Facts:
    """What a run scored and how.

    metric: the basis, e.g. "epdms-v2.2".  source: where scenes and trajectories came from, as JSON.
    inputs: a hash that is the same for runs of the same inputs.  total: rows of the table.
    entries: of a two-stage run's mapping, those that have trajectories.
    """

    metric: str
    traffic: str
    source: Mapping[str, Any]
    inputs: str
    total: int
    entries: Sequence[Entry] | None = None

    @property
    def family(self) -> str:
        return family_of(self.metric)


@dataclass(frozen=True)
class Result:
    """reasons: row of the table -> why it has no score."""

    facts: Facts
    table: ScoreTable
    reasons: Mapping[int, str] = field(default_factory=dict)

    def summaries(self) -> list[Summary] | None:
        """Of a two-stage run."""
        return None if self.facts.entries is None else summarise(self.facts.entries, self.table)

    def overwritten(self) -> dict[str, dict[str, int]]:
        """Planner -> sub-score -> in how many rows the human filter wrote 1 over something less; empty for PDMS."""
        columns, figures = self.table.columns, self.table.figures
        pairs = [(name, UNFILTERED + name) for name in columns if UNFILTERED + name in columns]
        names = np.array(self.table.names)
        return {
            planner: {
                name: int((figures[own, columns.index(name)] > figures[own, columns.index(raw)]).sum())
                for name, raw in pairs
            }
            for planner in (dict.fromkeys(self.table.names) if pairs else ())
            for own in [names == planner]
        }

    def unfiltered_means(self) -> dict[str, float | None]:
        """Planner -> its mean score with the human filter off, in two stages the combined one; empty for PDMS."""
        if SCORE_UNFILTERED not in self.table.columns:
            return {}
        summaries = self.summaries()
        if summaries is not None:
            found = {summary.name: float(summary.figures[-1, -1]) for summary in summaries}
        else:
            scores = self.table.figures[:, self.table.columns.index(SCORE_UNFILTERED)]
            names = np.array(self.table.names)
            own = {name: scores[(names == name) & self.table.is_scored] for name in dict.fromkeys(self.table.names)}
            found = {name: float(scores.mean()) if len(scores) else np.nan for name, scores in own.items()}
        return {name: None if np.isnan(mean) else mean for name, mean in found.items()}


def sidecar(out: str | Path) -> Path:
    return Path(f"{out}.json")


def summary_path(out: str | Path) -> Path:
    out = Path(out)
    return out.with_name(f"{out.stem}_summary.csv")


def check_layout(
    out: str | Path, layout: Layout, names: Sequence[str], facts: Facts, inputs: Sequence[str | Path | None] = ()
) -> None:
    """Raises InputError, before anything is scored, where the result could not be written so.

    inputs: files that the command reads.
    """
    if Path(out).is_dir():
        raise InputError(f"{out}: is a folder; name a file for --out")
    outputs = _outputs(out, layout, names, facts)
    if len(set(outputs)) < len(outputs):
        raise InputError(
            f"{summary_path(out)}: would be the run's summary and the table of the planner 'summary'; rename the "
            "planner, or leave --format official out"
        )
    spare_inputs([*outputs, sidecar(out)], inputs)


def _outputs(out: str | Path, layout: Layout, names: Sequence[str], facts: Facts) -> list[Path]:
    """The tables, most important first, and a two-stage run's summary."""
    tables = official_paths(Path(out), list(dict.fromkeys(names))) if layout == "official" else [Path(out)]
    return tables + ([summary_path(out)] if facts.entries is not None else [])


def check_replacing(
    out: str | Path, layout: Layout, names: Sequence[str], facts: Facts, is_resumed: Callable[[], bool] = lambda: False
) -> None:
    """Raises InputError, before anything is scored, where the result would replace one of other inputs.

    The same inputs write the same result once more. Of a table without its JSON nobody knows what made it.
    is_resumed: says whether this run was killed while it wrote its result.
    """
    wanted, recorded = _wanted(facts, layout), _recorded(out)
    found = {key: recorded.get(key) for key in wanted}
    for path in (Path(out).with_name(name) for name in recorded.get("files", ())):
        if path.exists() and found != wanted:
            raise InputError(
                f"{path}: {_difference(recorded, facts.source, found, wanted)}; remove it or choose another --out"
            )
    for path in _outputs(out, layout, names, facts):
        if path.exists() and path.name not in recorded.get("files", ()) and not is_resumed():
            raise InputError(
                f"{path}: is there, and no {sidecar(out).name} says what made it; remove it or choose another --out"
            )


def is_written(out: str | Path, layout: Layout, facts: Facts) -> bool:
    """Whether the finished result of these very inputs lies there."""
    recorded, wanted = _recorded(out), _wanted(facts, layout)
    if not recorded or {key: recorded.get(key) for key in wanted} != wanted:
        return False
    files = {Path(out).with_name(name): known for name, known in recorded["files"].items()}
    return all(path.is_file() and sha256(path) == known for path, known in files.items())


def _wanted(facts: Facts, layout: Layout) -> dict[str, Any]:
    """What the JSON says of a result of these inputs."""
    return {**identity(facts), "format": layout, "version": __version__}


def _recorded(out: str | Path) -> dict[str, Any]:
    """What the JSON of an earlier result says; empty where there is none."""
    if not sidecar(out).exists():
        return {}
    content = read_json(sidecar(out))
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise InputError(f"{sidecar(out)}: is there and is no result of this command; choose another --out")
    return content


def _difference(
    recorded: Mapping[str, Any], wanted_at: Mapping[str, Any], found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str:
    """What differs; the hash of all inputs only where nothing that has a name does."""
    named = {key: value for key, value in wanted.items() if key != "inputs"}
    if all(found[key] == value for key, value in named.items()):
        return "inputs: the scenes have changed since this table was made"
    for key in _PLACES:
        if found.get(f"{key}_sha256") != wanted.get(f"{key}_sha256"):
            old, new = recorded.get(key), wanted_at.get(key)
            now = "which has changed since" if old == new else f"now {new!r}"
            return f"{key}: this table was made with {old!r}, {now}"
    return differs("this table", {key: found[key] for key in named}, named)


def identity(facts: Facts) -> dict[str, Any]:
    """What decides the figures, as the JSON names it; trajectories count by their content, wherever they lie."""
    source = {key: value for key, value in facts.source.items() if key not in (*_PLACES, "remarks")}
    return {"metric": facts.metric, "traffic": facts.traffic, **source, "inputs": facts.inputs}


def write_result(out: str | Path, result: Result, layout: Layout = "rows") -> list[Path]:
    """Write a result; returns the tables, most important first."""
    out, facts, summaries = Path(out), result.facts, result.summaries()
    if layout == "official":
        files = write_official(out, result.table, facts.family, summaries)
    else:
        write_table(out, result.table)
        files = [out]
    if summaries is not None:
        write_summaries(summary_path(out), summaries)
        files.append(summary_path(out))
    write_json(sidecar(out), _describe(result, layout, files))
    return files


def require_scores(out: str | Path, result: Result) -> None:
    """Raises InputError for a written result in which nothing has a score."""
    if not result.table.is_scored.any():
        raise InputError(
            f"{out}: written, but none of its {counted(len(result.table), 'row')} has a score; see the reasons above"
        )


def report(result: Result) -> list[str]:
    """A line for each thing that has no score, naming planners where only some of a scene's are concerned."""
    lines = []
    for item in _not_scored(result):
        some = "" if item["all_of_scene"] else f" ({', '.join(item['names'])})"
        lines.append(f"not scored: {item['reason']}{some}")
    total = len(result.facts.entries or ())
    for summary in result.summaries() or ():
        if summary.entries < total:
            lines.append(
                f"summary: {summary.name} has trajectories for {summary.entries} of {total} entries; its means are "
                "over these alone, so compare them with no other planner's"
            )
    return lines


def _describe(result: Result, layout: Layout, files: Sequence[Path]) -> dict[str, Any]:
    facts, table = result.facts, result.table
    content: dict[str, Any] = {
        "metric": facts.metric,
        "traffic": facts.traffic,
        "human_filter": facts.family == "epdms",
        "stages": 1 if facts.entries is None else 2,
        **facts.source,
        "format": layout,
        "scenes": len(set(table.tokens)),
        "rows": len(table),
        "scored": int(table.is_scored.sum()),
        SCORE_UNFILTERED: result.unfiltered_means(),
        "overwritten": result.overwritten(),
        "not_scored": [{name: item[name] for name in ("reason", "names", "rows")} for item in _not_scored(result)],
        "version": __version__,
        "inputs": facts.inputs,
        "files": {path.name: sha256(path) for path in files},
    }
    summaries = result.summaries()
    if summaries is not None:
        content["summary_entries"] = {summary.name: summary.entries for summary in summaries}
    return content


def _not_scored(result: Result) -> list[dict[str, Any]]:
    """Rows without a score by reason, in the order of their first row."""
    table = result.table
    groups: dict[str, list[int]] = {}
    for row, reason in sorted(result.reasons.items()):
        groups.setdefault(" ".join(reason.split()), []).append(row)
    of_scene: dict[str, int] = {}
    for token in table.tokens:
        of_scene[token] = of_scene.get(token, 0) + 1
    items = []
    for reason, rows in groups.items():
        tokens = {table.tokens[row] for row in rows}
        items.append(
            {
                "reason": reason,
                "names": list(dict.fromkeys(table.names[row] for row in rows)),
                "rows": rows,
                "all_of_scene": sum(of_scene[token] for token in tokens) == len(rows),
            }
        )
    return items
