"""Draw score_against_omega.png from a finished demo, and print the figures that README and docs/demo.md quote.

python docs/pictures/make.py [runs/demo/evaluation]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from dipole_vla.evaluation.statistics import LogIntervals
from dipole_vla.report.charts import BLUE, GREEN, GREY, INK, RC

Scores = dict[tuple[str, float | None, int], pd.Series]  # (policy, omega, N) -> score x 100 of each scene, by token


def scores_of(folder: Path) -> tuple[Scores, LogIntervals]:
    """N = 1 is the mean over every drawn plan, as in summary.json; larger N is what the critic chose."""
    rows, plans = (pd.read_parquet(folder / f"{name}.parquet") for name in ("rows", "plans"))
    found: Scores = {}
    for table, counts in ((rows, rows["candidates"]), (plans, 1)):
        table = table.assign(candidates=counts)
        for (policy, omega, count), group in table.groupby(["policy", "omega", "candidates"], dropna=False):
            key = (policy, None if pd.isna(omega) else float(omega), int(count))
            found[key] = 100 * group.groupby("token")["score"].mean().sort_index()
    logs = rows.drop_duplicates("token").set_index("token").sort_index()["log_name"]
    return found, LogIntervals(logs.tolist())


def draw(scores: Scores, intervals: LogIntervals, path: Path) -> None:
    most = max(count for _, _, count in scores)
    omegas = sorted(omega for policy, omega, count in scores if policy == "dipole" and count == most)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(8, 3.9), layout="constrained", facecolor="white")
        axes = figure.add_subplot(facecolor="white")
        for count, color, marker in ((1, BLUE, "o"), (most, GREEN, "^")):
            base = scores["reference", None, count]
            gains = [scores["dipole", omega, count] - base for omega in omegas]
            bands = [intervals.interval(gain.to_numpy()) for gain in gains]
            low, high = ([base.mean() + band[side] for band in bands if band] for side in (0, 1))
            axes.fill_between(omegas, low, high, color=color, alpha=0.16, linewidth=0)
            words = "one plan" if count == 1 else f"best of {count} by the critic"
            label = f"DIPOLE, {words}"
            axes.plot(omegas, [base.mean() + g.mean() for g in gains], color=color, marker=marker, label=label)
            axes.axhline(base.mean(), color=color, linestyle=(0, (4, 3)), linewidth=1.2, label=f"imitation, {words}")
        axes.axhline(scores["human", None, 1].mean(), color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label="human")
        axes.axvline(0, color=GREY, linewidth=0.6)
        axes.set_xticks(omegas, [f"{omega:g}".replace("-", "−") for omega in omegas])
        axes.set_xlabel("greed ω at inference (−1: negative policy, 0: positive policy)")
        axes.set_ylabel("PDMS × 100")
        axes.grid(axis="y", linewidth=0.4, alpha=0.35)
        handles, labels = axes.get_legend_handles_labels()
        order = [len(labels) - 1, 2, 3, 0, 1]  # as they lie, from the top
        place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False, "fontsize": 9}
        axes.legend([handles[i] for i in order], [labels[i] for i in order], **place)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def say(scores: Scores, intervals: LogIntervals) -> None:
    """Each row's mean, its gain over the reference, and its gain over the reference with as many candidates."""

    def gain(score: pd.Series, base: pd.Series) -> str:
        low, high = intervals.interval((score - base).to_numpy()) or (float("nan"),) * 2
        return f"{(score - base).mean():+.1f} [{low:+.1f}, {high:+.1f}]"

    for (policy, omega, count), score in scores.items():
        bases = scores["reference", None, 1], scores["reference", None, count]
        cells = [policy, "" if omega is None else f"{omega:g}", f"{count}", f"{score.mean():.1f}"]
        print("|", " | ".join(cells + [gain(score, base) for base in bases]), "|")


if __name__ == "__main__":
    scores, intervals = scores_of(Path(*sys.argv[1:] or ["runs/demo/evaluation"]))
    draw(scores, intervals, Path(__file__).with_name("score_against_omega.png"))
    say(scores, intervals)
