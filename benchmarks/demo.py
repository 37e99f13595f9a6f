"""What the demo's pair adds, over several worlds: a line a seed and the seeds together, from finished demos.

    for seed in 0 1 2 3 4; do dipole-vla demo --seed $seed --out runs/seed$seed; done
    python benchmarks/demo.py runs/seed*

Setting and fairest reference are those that the rule of `dipole_vla.evaluation.choice` finds on validation: among all
settings, as the demo itself reports, then among those of N = 1 and of the greatest N alone. Differences are of test
scenes, paired, with intervals over whole logs. Nothing is found on test.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from dipole_vla.evaluation.choice import choose, fairest
from dipole_vla.evaluation.settings import MEAN, REFERENCE, Setting
from dipole_vla.evaluation.subsets import best_of
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json
from navsim_adapter.foundation.statistics import LogIntervals

HUMAN = Setting("human", start_scale=None)
Choice = tuple[Setting, Setting]  # of the pair, of the reference


@dataclass
class Demo:
    """name: of its folder.  logs: of each test scene.  scores: expected score of each test scene, by setting."""

    name: str
    logs: list[str]
    scores: dict[Setting, np.ndarray]
    validation: dict[Setting, float]

    @classmethod
    def read(cls, folder: Path) -> Demo:
        for part in ("validation", "evaluation"):
            if not (folder / part / "summary.json").is_file():
                raise InputError(f"{folder / part}: no evaluation here; give folders of demos that are finished")
        rows = read_json(folder / "validation" / "summary.json")["rows"]
        path = folder / "evaluation" / "plans.parquet"
        plans = pq.read_table(path, columns=[name for name in pq.read_schema(path).names if name != "poses"])
        plans = plans.to_pandas().sort_values(["token", "index"], kind="stable")
        settings = [Setting.of(row) for row in rows if row["policy"] != "oracle"]
        logs = plans.drop_duplicates("token").log_name.tolist()
        scores = {setting: _expected(plans[setting.of_plans(plans)], setting, len(logs)) for setting in settings}
        return cls(folder.name, logs, scores, {Setting.of(row): row["score"] for row in rows})

    def chosen(self, candidates: int | None = None) -> Choice:
        """By validation alone, among all settings or those of that N; beside the fairest reference for its N."""
        of = self.validation.items()
        own = choose({s: score for s, score in of if candidates is None or s.candidates == candidates})
        return own, fairest(self.validation, own.candidates)

    @property
    def most(self) -> int:
        return max(setting.candidates for setting in self.scores)


def _expected(pool: pd.DataFrame, setting: Setting, scenes: int) -> np.ndarray:
    """(scenes,) mean score of a plan, or of the best of N by the critic over all subsets of the plans."""
    score = pool.score.to_numpy().reshape(scenes, -1)
    if setting.candidates == 1:
        return score.mean(1)
    return best_of(score[:, :, None], pool.q.to_numpy().reshape(scenes, -1), setting.candidates)[:, 0]


def intervals_of(demos: Sequence[Demo]) -> LogIntervals:
    return LogIntervals([f"{number}/{log}" for number, demo in enumerate(demos) for log in demo.logs])


def said(differences: Sequence[np.ndarray], demos: Sequence[Demo]) -> str:
    """Mean and interval in points; logs of different worlds are different logs."""
    values = 100 * np.concatenate(differences)
    low, high = intervals_of(demos).interval(values) or (float("nan"), float("nan"))
    return f"{values.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def points(scores: Sequence[np.ndarray]) -> str:
    return f"{100 * np.concatenate(scores).mean():.1f}"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def gains(demos: Sequence[Demo], candidates: int | None, title: str) -> None:
    """The chosen setting beside the fairest reference and the human, a row a world and one for all."""
    choices = [demo.chosen(candidates) for demo in demos]
    mine, fair = ([demo.scores[choice[place]] for demo, choice in zip(demos, choices)] for place in (0, 1))
    human = [demo.scores[HUMAN] for demo in demos]

    def row(name: str, of: slice, ways: tuple[str, str]) -> list[str]:
        own, reference, people, worlds = mine[of], fair[of], human[of], demos[of]
        beyond, above = (said([a - b for a, b in zip(own, other)], worlds) for other in (reference, people))
        return [name, ways[0], points(own), ways[1], points(reference), beyond, points(people), above]

    rows = [row(demo.name, slice(n, n + 1), _ways(choices[n])) for n, demo in enumerate(demos)]
    head = ["world", "chosen", "points", "fairest reference", "points", "gain", "human", "chosen minus human"]
    table(title, head, [*rows, row("**all**", slice(None), ("", ""))])


def _ways(choice: Choice) -> tuple[str, str]:
    own, reference = choice
    of = "mean plan" if reference.policy == MEAN else f"N = {reference.candidates}"
    return (
        f"ω = {own.omega:g}, start noise {own.start_scale:g}, N = {own.candidates}",
        f"start noise {reference.start_scale:g}, {of}",
    )


def dial(demos: Sequence[Demo]) -> None:
    """Points by omega at N = 1 and equal start noise, all worlds together; then the order within each world."""
    single = [s for s in demos[0].scores if s.candidates == 1 and s.policy == "dipole" and not s.guidance]
    starts = sorted({setting.start_scale or 0.0 for setting in single})
    greed = sorted({setting.omega or 0.0 for setting in single})
    omegas: list[float | None] = [*(w for w in greed if w < 0), None, *(w for w in greed if w >= 0)]
    rows = []
    for start in starts:
        base = _plain(None, start)
        of = [[demo.scores[_plain(omega, start)] for demo in demos] for omega in omegas]
        against = [demo.scores[base] for demo in demos]
        rows.append([f"{start:g}", *map(points, of)])
        gained = [said([a - b for a, b in zip(scores, against)], demos) for scores in of]
        rows.append(["", *("" if omega is None else gain for omega, gain in zip(omegas, gained))])
    head = ["start noise", *("reference" if omega is None else f"ω = {omega:g}" for omega in omegas)]
    table("The dial at N = 1; below it the difference to the reference at the same start noise", head, rows)
    table(
        "The order at the start noise chosen for N = 1",
        ["world", "start noise", "ω = -1", "reference", "ω = 0", "chosen ω", "in order"],
        [_order(demo) for demo in demos],
    )


def _order(demo: Demo) -> list[str]:
    own = demo.chosen(1)[0]
    start = own.start_scale or 0.0
    low, middle, high, best = (demo.scores[s].mean() for s in (*(_plain(w, start) for w in (-1.0, None, 0.0)), own))
    figures = [f"{100 * value:.1f}" for value in (low, middle, high)]
    return [
        demo.name,
        f"{start:g}",
        *figures,
        f"{100 * best:.1f} ({own.omega:g})",
        "yes" if low < middle < high <= best else "no",
    ]


def _plain(omega: float | None, start: float) -> Setting:
    return Setting(REFERENCE if omega is None else "dipole", omega, 1, start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demos", nargs="+", type=Path, help="folders of finished demos")
    given = parser.parse_args()
    try:
        demos = [Demo.read(folder) for folder in given.demos]
    except InputError as mistake:
        parser.error(str(mistake))
    scenes = sum(len(demo.logs) for demo in demos)
    print(f"{len(demos)} worlds, {scenes} test scenes; points are the score x 100, intervals 95 %")
    most = min(demo.most for demo in demos)
    gains(demos, None, "As the demo chooses and reports")
    gains(demos, 1, "N = 1: plans as they come, chosen among such settings alone")
    gains(demos, most, f"N = {most}: the critic's choice, chosen among such settings alone")
    dial(demos)


if __name__ == "__main__":
    main()
