"""What a report reads: an evaluation folder and, where they are still there, the folders it was made from.

`summary.json` and `rows.parquet` are required; plans, candidates, scenes, cameras and the scoring cache are not, and
each that is missing leaves one line in `Evaluation.missing` and on the page; a damaged one raises InputError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dipole_vla.data.columns import VARIANT
from dipole_vla.evaluation.settings import REFERENCE, Setting, fewest_of, several_starts
from dipole_vla.evaluation.summary import HUMAN
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import is_complete, read_json, verify
from navsim_adapter.foundation.statistics import Interval, LogIntervals
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.trajectories import DEFAULT_INTERVAL

KEYS = (
    *("token", "log_name", "policy", "omega", "candidates", "start_scale", "guidance"),
    *("index", "q", "score", "poses"),
)
REQUIRED_SUMMARY = ("metric", "split", "scenes", "rows", "chosen")
REQUIRED_ROWS = ("token", "log_name", "policy", "omega", "candidates", "score", "poses")
REQUIRED_PLANS = ("token", "policy", "omega", "index", "score", "poses")
CANDIDATE_FACTS = ("candidates.json", "meta.json")


@dataclass
class Evaluation:
    """An evaluation in memory. `rows` and `plans` leave out the poses: `poses_of` reads those of a few scenes.

    rows: one line per (token, policy, omega, candidates). plans: per (token, policy, omega, index). candidates: the
    scored table RL learned from.
    scenes: token -> row of the scenes table. caches: token -> SceneCache.
    """

    folder: Path
    summary: dict[str, Any]
    rows: pd.DataFrame
    sub_scores: list[str]
    plans: pd.DataFrame | None = None
    candidates: pd.DataFrame | None = None
    candidates_meta: dict[str, Any] = field(default_factory=dict)
    scenes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sensors: Path | None = None
    caches: Mapping[str, SceneCache] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    _tables: dict[Setting, pd.DataFrame] = field(default_factory=dict)

    @cached_property
    def settings(self) -> list[Setting]:
        """Of every row of the table."""
        return [Setting.of(row) for row in self.summary["rows"]]

    @property
    def several_starts(self) -> bool:
        """Whether the table knows more than one start noise, which then has to be named."""
        return several_starts(self.summary["rows"])

    @property
    def reference(self) -> Setting:
        """The imitation policy as it is, with the fewest candidates: what critic and adapters gain together."""
        start = self.summary.get("start_scale", 1.0)
        counts = [s.candidates for s in self.settings if s.policy == REFERENCE and s.start_scale == start]
        return Setting(REFERENCE, None, min(counts, default=1), start)

    @property
    def interval(self) -> float:
        """Seconds between the poses of its plans."""
        return float(self.summary.get("interval", DEFAULT_INTERVAL))

    def same_n(self, setting: Setting) -> Setting:
        """The imitation policy with as many candidates and the same start noise, of which the same critic chooses."""
        start = self.reference.start_scale if setting.policy == "human" else setting.start_scale
        return Setting(REFERENCE, None, setting.candidates, start)

    def fairest(self, setting: Setting) -> Setting:
        """The best of what needs no pair for that N, where the evaluation looked for it; else `same_n`."""
        found = (self.summary["chosen"].get("references") or {}).get(str(setting.candidates))
        return Setting.of(found) if found else self.same_n(setting)

    @property
    def baseline(self) -> Setting:
        """What the chosen setting is compared with, in the headline and scene by scene."""
        return self.fairest(self.chosen)

    @property
    def chosen(self) -> Setting:
        return Setting.of({"policy": "dipole", **self.summary["chosen"], "omega": self.chosen_omega})

    @property
    def chosen_omega(self) -> float:
        return float(self.summary["chosen"]["omega"])

    @property
    def provenance(self) -> dict[str, Any]:
        return dict(self.summary.get("provenance") or {})

    @property
    def beta(self) -> float | None:
        beta = self.provenance.get("beta")
        return None if beta is None else float(beta)

    @property
    def rule(self) -> str:
        """The weighting rule the pair was trained with."""
        return str(self.provenance.get("rule", "dichotomous"))

    @property
    def shift(self) -> float:
        """k in the weight sigma(beta G + k) of the training."""
        return float(self.provenance.get("shift", 0.0))

    def summary_row(self, key: Setting) -> dict[str, Any]:
        """The means and intervals of one key; raises InputError when the summary has none."""
        for known, row in zip(self.settings, self.summary["rows"]):
            if known == key:
                return row
        where = self.folder / "summary.json"
        raise InputError(f"{where}: rows: none for {key.label}; run `dipole-vla evaluate` again")

    def has(self, key: Setting) -> bool:
        return not self._select(key).empty

    def table(self, key: Setting) -> pd.DataFrame:
        """The rows of one key by token, sorted; raises InputError when the sweep has none."""
        if key not in self._tables:
            self._tables[key] = self._by_token(key)
        return self._tables[key]

    def paired(self, key: Setting, baseline: Setting) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Two tables over the same tokens in the same order."""
        first, second = self.table(key), self.table(baseline)
        if not first.index.equals(second.index):
            odd = sorted(set(first.index) ^ set(second.index))[0]
            where = self.folder / "rows.parquet"
            raise InputError(f"{where}: scene {odd} is scored for only one of {key.label} and {baseline.label}")
        return first, second

    def gain(self, key: Setting, baseline: Setting) -> tuple[float, Interval | None]:
        """Mean paired difference and its interval: over every drawn candidate where the summary has it (against the
        reference), else over the plans of `rows.parquet`."""
        row = self.summary_row(key)
        for name, known in (
            ("gain", self.reference),
            ("critic_gain", fewest_of(self.settings, key)),
            ("equal_n_gain", self.same_n(key)),
            ("fairest_gain", self.fairest(key)),
            ("human_gain", HUMAN),
        ):
            if baseline == known and row.get(name) is not None:
                interval = row.get(f"{name}_ci95")
                return float(row[name]), None if interval is None else (float(interval[0]), float(interval[1]))
        first, second = self.paired(key, baseline)
        return self.mean_interval(first["score"] - second["score"])

    def with_poses(self, table: Literal["rows", "plans"], tokens: Sequence[str]) -> pd.DataFrame:
        """Lines of a table with their poses, for a few scenes."""
        return read_parquet(self.folder / f"{table}.parquet", ("poses",), tokens=tokens)

    def plans_of(self, setting: Setting) -> pd.DataFrame:
        """All candidates a setting chooses from; empty where the evaluation kept none."""
        if self.plans is None:
            return pd.DataFrame(columns=["token", "index", "score", "q"])
        return self.plans[setting.of_plans(self.plans)]

    @cached_property
    def intervals(self) -> LogIntervals:
        return LogIntervals(self.table(self.reference)["log_name"].tolist())

    def mean_interval(self, values: pd.Series) -> tuple[float, Interval | None]:
        """Mean over scenes with its 95 % interval over logs; `values` in the token order of `table`."""
        return float(values.mean()), self.intervals.interval(values.to_numpy())

    def _by_token(self, key: Setting) -> pd.DataFrame:
        rows = self._select(key)
        where = self.folder / "rows.parquet"
        if rows.empty:
            raise InputError(f"{where}: no rows for {key.label}; run `dipole-vla evaluate` again")
        if rows["token"].duplicated().any():
            token = rows["token"][rows["token"].duplicated()].iloc[0]
            raise InputError(f"{where}: scene {token} appears twice for {key.label}; run `dipole-vla evaluate` again")
        return rows.set_index("token").sort_index()

    def _select(self, key: Setting) -> pd.DataFrame:
        return self.rows[key.of_rows(self.rows)]


def load_evaluation(folder: Path) -> Evaluation:
    """Read and check an evaluation; raises InputError naming the file, the field and the remedy."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such evaluation folder; run `dipole-vla evaluate` first")
    verify(folder)
    summary = read_json(folder / "summary.json")
    _check_summary(folder / "summary.json", summary)
    rows = read_parquet(folder / "rows.parquet", REQUIRED_ROWS, without_poses=True)
    names = summary.get("sub_scores") or [name for name in rows.columns if name not in KEYS]
    evaluation = Evaluation(folder, summary, rows, list(names))
    lacking = [name for name in evaluation.sub_scores if name not in rows]
    if lacking:
        raise InputError(f"{folder / 'rows.parquet'}: column {lacking[0]} is missing; run `dipole-vla evaluate` again")
    _check_numbers(folder / "rows.parquet", rows, ["score", *evaluation.sub_scores])
    for known in (evaluation.reference, evaluation.baseline):
        evaluation.paired(evaluation.chosen, known)
    if (folder / "plans.parquet").is_file():
        evaluation.plans = read_parquet(folder / "plans.parquet", REQUIRED_PLANS, without_poses=True)
    else:
        evaluation.missing["plans"] = "the evaluation has no plans.parquet: candidates are neither drawn nor compared"
    _read_origins(evaluation)
    return evaluation


def read_parquet(
    path: Path, required: Sequence[str], tokens: Sequence[str] | None = None, without_poses: bool = False
) -> pd.DataFrame:
    """A Parquet table, whole or for some tokens."""
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        lacking = [name for name in required if name not in names]
        if lacking:
            raise InputError(f"{path}: column {lacking[0]} is missing; run `dipole-vla evaluate` again")
        columns = [name for name in names if not (without_poses and name == "poses")]
        wanted = None if tokens is None else [("token", "in", list(tokens))]
        return pyarrow.parquet.read_table(path, columns=columns, filters=wanted).to_pandas()
    except (OSError, pyarrow.ArrowException) as problem:
        reason = str(problem).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({reason}); run `dipole-vla evaluate` again") from problem


def _check_summary(path: Path, summary: Any) -> None:
    remedy = "run `dipole-vla evaluate` again"
    if not isinstance(summary, dict):
        raise InputError(f"{path}: expected an object, found {type(summary).__name__}; {remedy}")
    for name in REQUIRED_SUMMARY:
        if summary.get(name) in (None, [], {}):
            raise InputError(f"{path}: {name}: is missing; {remedy}")
    for name in ("omega", "candidates"):
        if not isinstance(summary["chosen"].get(name), int | float):
            raise InputError(f"{path}: chosen.{name}: expected a number, found {summary['chosen'].get(name)}; {remedy}")
    for name in ("on", "on_these_scenes"):
        if name not in summary["chosen"]:
            raise InputError(f"{path}: chosen.{name}: is missing; {remedy}")
    for number, row in enumerate(summary["rows"]):
        for name in ("policy", "candidates", "score"):
            if row.get(name) is None:
                raise InputError(f"{path}: rows[{number}].{name}: is missing; {remedy}")


def _check_numbers(path: Path, rows: pd.DataFrame, columns: Sequence[str]) -> None:
    """Scores are finite; a sub-score may be empty only for the whole of a scene's metric (two-frame comfort)."""
    for name in columns:
        values = pd.to_numeric(rows[name], errors="coerce")
        if name != "two_frame_extended_comfort" and not np.isfinite(values).all():
            token = rows["token"][~np.isfinite(values)].iloc[0]
            raise InputError(f"{path}: scene {token}: {name} is not a number; run `dipole-vla evaluate` again")


def _read_origins(evaluation: Evaluation) -> None:
    """Candidates, scenes, sensors and cache, as far as they are still where the evaluation found them."""
    missing = evaluation.missing
    folder = _origin(evaluation, "candidates", "weights and advantages cannot be shown")
    if folder is not None:
        rows = _read_dataset(folder, without_poses=True)
        evaluation.candidates = rows[rows["source"] != VARIANT] if "source" in rows else rows
        for name in CANDIDATE_FACTS:
            if (folder / name).is_file():
                evaluation.candidates_meta = dict(read_json(folder / name))
                break
    folder = _origin(evaluation, "scenes", "commands and cameras are left out")
    if folder is not None:
        table = _read_dataset(folder)
        evaluation.scenes = {row["token"]: row for row in table.to_dict("records")}
    evaluation.sensors = _origin(evaluation, "sensors", "front cameras are left out")
    folder = _origin(evaluation, "cache", "bird's-eye pictures are left out")
    if folder is not None:
        from navsim_adapter.cache.store import open_cache

        evaluation.caches = open_cache(folder)
    if evaluation.beta is None:
        missing["beta"] = "the evaluation does not record beta: weights are not shown"


def _origin(evaluation: Evaluation, name: str, consequence: str) -> Path | None:
    """The folder named in `inputs`: as given, else relative to the evaluation."""
    given = (evaluation.summary.get("inputs") or {}).get(name)
    if given is None:
        evaluation.missing[name] = f"the evaluation names no {name} folder: {consequence}"
        return None
    for path in (Path(given), evaluation.folder / given):
        if path.is_dir():
            return path
    evaluation.missing[name] = f"{name} folder {given} is not there any more: {consequence}"
    return None


def _read_dataset(folder: Path, without_poses: bool = False) -> pd.DataFrame:
    import datasets

    if (folder / "manifest.json").is_file() and not is_complete(folder):
        raise InputError(f"{folder}: files differ from its manifest.json; make the folder again")
    try:
        table = datasets.load_from_disk(str(folder))
        if without_poses and "poses" in table.column_names:
            table = table.remove_columns("poses")
        return table.with_format("pandas")[:]
    except (OSError, ValueError, AttributeError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(f"{folder}: cannot be read as an Arrow table ({reason}); make the folder again") from problem
