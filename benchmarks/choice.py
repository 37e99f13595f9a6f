"""What a rule that chooses the setting on some scenes costs on others: mean regret over worlds and splits by logs.

    python benchmarks/choice.py runs/demo runs/seed1 runs/seed2       # finished demos: their evaluation and validation
    python benchmarks/choice.py --synthetic 5                     # plans and critics made up, the truth known

A world's scenes (of all its evaluations) are split by logs, half to choose on and half to judge by, many times. The
regret of a rule is the best mean of any setting on the scenes that judge, minus that of the setting it chose. The same
noise in the judging scenes is in every rule's regret; compare rules, not a regret with 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dipole_vla.evaluation.choice import choose
from dipole_vla.evaluation.settings import Setting
from dipole_vla.evaluation.subsets import best_of
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json

Scores = Mapping[Setting, float]
Rule = Callable[[Scores, Scores], Setting]
PARTS = ("evaluation", "validation")


def argmax(by_groups: Scores, by_subsets: Scores) -> Setting:
    """The rule before: the best mean of the grid, of groups of N."""
    return max(by_groups, key=by_groups.__getitem__)


def argmax_of_subsets(by_groups: Scores, by_subsets: Scores) -> Setting:
    return max(by_subsets, key=by_subsets.__getitem__)


def one_curve(by_groups: Scores, by_subsets: Scores) -> Setting:
    """omega, start noise and guidance all by the curve of the smallest N, then N."""
    fewest = min(setting.candidates for setting in by_subsets)
    first = max((s for s in by_subsets if s.candidates == fewest), key=by_subsets.__getitem__)
    return max((s for s in by_subsets if s.best_of(fewest) == first), key=by_subsets.__getitem__)


def mean_curve(by_groups: Scores, by_subsets: Scores) -> Setting:
    """omega by the mean over all N, for each start noise and guidance; then the best of these."""
    curves: dict[Setting, list[float]] = {}
    for setting, score in by_subsets.items():
        curves.setdefault(setting.best_of(1), []).append(score)
    best: dict[tuple, Setting] = {}
    for setting, values in curves.items():
        key = (setting.start_scale, setting.guidance)
        if key not in best or np.mean(values) > np.mean(curves[best[key]]):
            best[key] = setting
    return max((s for s in by_subsets if s.best_of(1) in best.values()), key=by_subsets.__getitem__)


RULES: dict[str, Rule] = {
    "argmax over the grid, groups of N (before)": argmax,
    "argmax over the grid, all subsets": argmax_of_subsets,
    "all but N by the smallest N, then N": one_curve,
    "omega by the mean over N, then the rest": mean_curve,
    "evaluation.choice.choose": lambda by_groups, by_subsets: choose(by_subsets),
}


class World:
    """Expected scores by scene of every guided setting: by groups of N as before, and by all subsets."""

    def __init__(self, name: str, plans: pd.DataFrame, counts: Sequence[int]) -> None:
        self.name, plans = name, plans[plans.policy == "dipole"].sort_values(["token", "index"], kind="stable")
        facts = {"start_scale": 1.0, "guidance": ""}
        plans = plans.assign(**{key: value for key, value in facts.items() if key not in plans})
        self.logs = plans.drop_duplicates("token").log_name.to_numpy()
        self.groups: dict[Setting, np.ndarray] = {}
        self.subsets: dict[Setting, np.ndarray] = {}
        for (omega, start, guidance), pool in plans.groupby(["omega", "start_scale", "guidance"], sort=True):
            score, q = (pool[name].to_numpy().reshape(len(self.logs), -1) for name in ("score", "q"))
            for count in counts if score.shape[1] > 1 else [1]:
                setting = Setting("dipole", float(omega), count, float(start), str(guidance))
                self.subsets[setting] = best_of(score[:, :, None], q, count)[:, 0] if count > 1 else score.mean(1)
                self.groups[setting] = _by_groups(score, q, count, max(counts))

    def regrets(self, rng: np.random.Generator, splits: int, share: float) -> dict[str, list[float]]:
        """Of every rule, on the same splits."""
        found: dict[str, list[float]] = {name: [] for name in RULES}
        names = np.unique(self.logs)
        for _ in range(splits):
            chosen_on = np.isin(self.logs, rng.permutation(names)[: round(share * len(names))])
            groups, subsets = (
                {setting: float(values[chosen_on].mean()) for setting, values in table.items()}
                for table in (self.groups, self.subsets)
            )
            judged = {setting: float(values[~chosen_on].mean()) for setting, values in self.subsets.items()}
            for name, rule in RULES.items():
                found[name].append(max(judged.values()) - judged[rule(groups, subsets)])
        return found


def _by_groups(score: np.ndarray, q: np.ndarray, count: int, most: int) -> np.ndarray:
    """The mean of the kept plans of groups of N, of as many plans as the largest N."""
    score, q = score[:, :most], q[:, :most]
    groups = max(1, score.shape[1] // count)
    kept = q[:, : groups * count].reshape(len(q), groups, -1).argmax(2)
    return np.take_along_axis(score[:, : groups * count].reshape(len(q), groups, -1), kept[..., None], 2).mean((1, 2))


def read(folder: Path) -> World:
    """A finished demo: the plans of its evaluations, whose scenes must be different ones."""
    import pyarrow.parquet as pq

    tables, counts = [], set()
    for part in PARTS:
        path = folder / part / "plans.parquet"
        if not path.is_file():
            raise InputError(f"{path}: is not there; give folders of demos that are finished")
        names = [name for name in pq.read_schema(path).names if name != "poses"]
        tables.append(pq.read_table(path, columns=names).to_pandas())
        counts |= {row["candidates"] for row in read_json(folder / part / "summary.json")["rows"]}
    if set(tables[0].token) & set(tables[1].token):
        raise InputError(f"{folder}: its evaluations share scenes; give one in which they do not")
    return World(str(folder), pd.concat(tables, ignore_index=True), sorted(counts))


def synthetic(seed: int, scenes: int = 480, per_log: float = 1.6, samples: int = 16) -> World:
    """A world of made-up plans: greed lifts the mean and narrows, less start noise lifts and narrows, the critic sees
    a tenth to a third of what is there. Strengths differ from world to world; scores are in [0, 1], many of them 0."""
    rng = np.random.default_rng(seed)
    best, lift, see = rng.uniform(1, 6), rng.uniform(0.06, 0.14), rng.uniform(0.15, 0.35)
    log = np.sort(rng.integers(0, round(scenes / per_log), scenes))
    level = rng.normal(0, 0.5, scenes) + rng.normal(0, 0.3, log.max() + 1)[log]
    omegas, starts = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0), (0.0, 0.5, 1.0)
    shared = rng.normal(size=(scenes, samples))
    rows = []
    for omega in omegas:
        own = rng.normal(0, 0.25, (scenes, 1)) * abs(omega) / 4
        for start in starts:
            count = samples if start else 1
            gain = 3 * lift * (1 - ((omega - best) / (best + 1)) ** 2) + 0.25 * (1 - start)
            spread = (0.1 + 0.7 * start) * (1 - 0.08 * max(omega, 0))
            noise = (0.8 * shared + 0.6 * rng.normal(size=shared.shape))[:, :count]
            value = level[:, None] + gain + own + spread * noise
            score = np.where(value < 0, 0.0, np.clip(0.6 + 0.4 * value, 0, 1))
            q = see * score + 0.3 * np.sqrt(1 - see**2) * rng.normal(size=score.shape)
            rows.append(
                pd.DataFrame(
                    {
                        "token": np.repeat(np.arange(scenes), count),
                        "log_name": np.repeat(log, count),
                        "index": np.tile(np.arange(count), scenes),
                        "policy": "dipole",
                        "omega": omega,
                        "start_scale": start,
                        "guidance": "",
                        "q": q.ravel(),
                        "score": score.ravel(),
                    }
                )
            )
    return World(f"synthetic {seed}", pd.concat(rows, ignore_index=True), (1, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", type=Path, help="folders of finished demos")
    parser.add_argument("--synthetic", type=int, default=0, help="how many made-up worlds")
    parser.add_argument("--splits", type=int, default=300, help="of each world")
    parser.add_argument("--share", type=float, default=0.5, help="of the logs, to choose on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        worlds = [read(folder) for folder in given.worlds]
    except InputError as mistake:
        parser.error(str(mistake))
    worlds += [synthetic(given.seed + number) for number in range(given.synthetic)]
    if not worlds:
        parser.error("give folders of finished demos, or --synthetic")
    rng = np.random.default_rng(given.seed)
    regrets = {world.name: world.regrets(rng, given.splits, given.share) for world in worlds}
    scenes = [len(world.logs) for world in worlds]
    print(f"{len(worlds)} worlds of {min(scenes)} to {max(scenes)} scenes, {given.splits} splits each; points\n")
    print("| rule | mean regret | 90 % quantile | by world |\n|---|---|---|---|")
    for name in RULES:
        by_world = [100 * np.mean(found[name]) for found in regrets.values()]
        every = 100 * np.concatenate([found[name] for found in regrets.values()])
        each = ", ".join(f"{value:.1f}" for value in by_world)
        print(f"| {name} | {np.mean(by_world):.2f} | {np.quantile(every, 0.9):.1f} | {each} |")


if __name__ == "__main__":
    main()
