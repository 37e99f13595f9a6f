"""Draw score_against_omega.png from finished demos, whose figures `benchmarks/demo.py` prints.

python docs/pictures/make.py runs/seed*
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.demo import HUMAN, Demo, intervals_of  # noqa: E402
from dipole_vla.evaluation.settings import REFERENCE, Setting  # noqa: E402
from dipole_vla.report.charts import BLUE, GREEN, GREY, INK, RC  # noqa: E402


def mean_of(demos: Sequence[Demo], setting: Setting) -> np.ndarray:
    """Score x 100 of every world's test scenes, one after the other."""
    return 100 * np.concatenate([demo.scores[setting] for demo in demos])


def draw(demos: Sequence[Demo], path: Path) -> None:
    """Means by omega at the start noise that most worlds chose for that N; bands are of the gain over the reference."""
    intervals = intervals_of(demos)
    omegas = sorted({s.omega for s in demos[0].scores if s.policy == "dipole" and s.omega is not None})
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(8, 3.9), layout="constrained", facecolor="white")
        axes = figure.add_subplot(facecolor="white")
        for count, color, marker in ((1, BLUE, "o"), (demos[0].most, GREEN, "^")):
            start = Counter(demo.chosen(count)[0].start_scale for demo in demos).most_common(1)[0][0]
            base = mean_of(demos, Setting(REFERENCE, None, count, start))
            gains = [mean_of(demos, Setting("dipole", omega, count, start)) - base for omega in omegas]
            bands = [intervals.interval(gain) for gain in gains]
            low, high = ([base.mean() + band[side] for band in bands if band] for side in (0, 1))
            axes.fill_between(omegas, low, high, color=color, alpha=0.16, linewidth=0)
            words = f"one plan, start noise {start:g}" if count == 1 else f"best of {count}, start noise {start:g}"
            label = f"DIPOLE, {words}"
            axes.plot(omegas, [base.mean() + g.mean() for g in gains], color=color, marker=marker, label=label)
            axes.axhline(base.mean(), color=color, linestyle=(0, (4, 3)), linewidth=1.2, label=f"imitation, {words}")
        human = mean_of(demos, HUMAN).mean()
        axes.axhline(human, color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label="human")
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


if __name__ == "__main__":
    draw([Demo.read(Path(word)) for word in sys.argv[1:]], Path(__file__).with_name("score_against_omega.png"))
