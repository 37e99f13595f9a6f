"""The report's charts as inline SVG: one message each, axes with units, kept apart by dash and marker as by colour.

Ink is written as `currentColor`, so a chart follows the page's light or dark scheme. Same data, same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dipole_vla.evaluation.settings import REFERENCE, Setting
from dipole_vla.report.inputs import Evaluation
from dipole_vla.report.metrics import metric_title
from dipole_vla.report.signatures import INERT, Weights

INK = "#12171e"
BLUE, ORANGE, GREEN, GREY = "#2f7dd1", "#d2691e", "#2a9d6f", "#8a9099"
SWEEP_STYLES: tuple[tuple[str, str, Any], ...] = (  # one per N; more than four curves would say nothing
    (GREY, "s", (0, (4, 2))),
    (BLUE, "o", "solid"),
    (GREEN, "^", (0, (6, 2, 1, 2))),
    (ORANGE, "D", (0, (1, 1))),
)
RC = {
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def omega_curve(evaluation: Evaluation) -> str:
    """Score against greed for each N, at the chosen start noise and guidance; bands are the paired intervals of the
    gain over the reference at the same N and start noise, put on that line."""
    chosen = evaluation.chosen
    rows = [row for row, own in zip(evaluation.summary["rows"], evaluation.settings) if _is_drawn(own, evaluation)]
    dipole = sorted((row for row in rows if row["policy"] == "dipole"), key=lambda row: row["omega"])
    with inline_figure(11, 4.8, "omega") as (figure, render):
        axes = figure.add_subplot()
        for count, style in zip(sorted({int(row["candidates"]) for row in dipole}), SWEEP_STYLES):
            _sweep(axes, evaluation, [row for row in dipole if row["candidates"] == count], count, style)
        place = (chosen.omega, 100 * evaluation.summary_row(chosen)["score"])
        axes.plot(*place, "o", markersize=15, markerfacecolor="none", markeredgecolor=INK, label="chosen")
        for row in rows:
            if row["policy"] not in ("dipole", "human"):
                dash = (0, (4.5, 2)) if row["candidates"] == evaluation.reference.candidates else (0, (1, 1.5))
                _level(axes, 100 * row["score"], Setting.of(row).words(evaluation.several_starts), ORANGE, dash)
            if row["policy"] == "human":
                _level(axes, 100 * row["score"], "human", INK, (0, (1, 1)))
        omegas = sorted({float(row["omega"]) for row in dipole})
        for omega, words in ((-1.0, "negative policy"), (0.0, "positive policy")):
            if omega in omegas:
                axes.axvline(omega, color=INK, linewidth=0.6, alpha=0.45)
                _note(axes, words, omega, 0, (4, 5), "bottom")
        axes.set_xticks(omegas, [f"{omega:g}".replace("-", "−") for omega in omegas])
        axes.set_xlabel("greed ω (−1: negative policy, 0: positive policy, above: extrapolation)")
        axes.set_ylabel(f"{metric_title(evaluation.summary['metric'])}, mean × 100")
        axes.margins(x=0.04)
        axes.grid(axis="y", linewidth=0.4, alpha=0.35)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, handlelength=3.2)
        return render("Score against greed omega for each number of candidates")


def _is_drawn(setting: Setting, evaluation: Evaluation) -> bool:
    """Rows of the curve: dipole and reference as the chosen setting starts, the fairest reference, the human."""
    chosen = evaluation.chosen
    if setting.policy == "dipole":
        return (setting.start_scale, setting.guidance) == (chosen.start_scale, chosen.guidance)
    if setting.policy == REFERENCE and setting.start_scale == chosen.start_scale:
        return True
    return setting.policy == "human" or setting == evaluation.baseline


def _sweep(
    axes: Any, evaluation: Evaluation, line: Sequence[dict[str, Any]], count: int, style: tuple[str, str, Any]
) -> None:
    """One N: rows sorted by omega, with the band of their gains where there are intervals."""
    color, marker, dash = style
    label, omegas = f"DIPOLE, N = {count}", [row["omega"] for row in line]
    base = evaluation.same_n(Setting.of(line[0]))
    if evaluation.has(base):
        found = [evaluation.gain(Setting.of(row), base)[1] or (np.nan, np.nan) for row in line]
        bands = 100 * (evaluation.summary_row(base)["score"] + np.array(found))
        axes.fill_between(omegas, bands[:, 0], bands[:, 1], color=color, alpha=0.16, linewidth=0)
    scores = [100 * row["score"] for row in line]
    axes.plot(omegas, scores, color=color, marker=marker, linestyle=dash, linewidth=2, markersize=5.5, label=label)


def _note(axes: Any, words: str, x: float, height: float, offset: tuple[float, float], align: str) -> None:
    """Small words beside a vertical mark at `x`, at a height in [0, 1] of the axes."""
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": align, "fontsize": 8.5}
    axes.annotate(words, (x, height), xytext=offset, **place)


def paired_differences(differences: np.ndarray) -> str:
    """Every scene's chosen minus reference, sorted: how many got better, how many worse, and by how much."""
    with inline_figure(11, 2.9, "paired") as (figure, render):
        axes = figure.add_subplot()
        points = 100 * np.sort(differences)
        worse, better = points < -1e-9, points > 1e-9
        for mask, color in ((worse, ORANGE), (better, BLUE)):
            axes.stairs(np.where(mask, points, 0.0), fill=True, color=color, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.8)
        for mask, side in ((worse, 0.0), (better, 1.0)):
            word = "worse" if side == 0.0 else "better"
            axes.annotate(
                f"{int(mask.sum())} {word}",
                (side, 0),
                xycoords=("axes fraction", "data"),
                xytext=(6, 5) if side == 0.0 else (-6, -5),
                textcoords="offset points",
                ha="left" if side == 0.0 else "right",
                va="bottom" if side == 0.0 else "top",
                color=ORANGE if side == 0.0 else BLUE,
                fontweight="bold",
            )
        axes.set_xlim(0, max(1, len(points)))
        axes.set_ylim(min(-25.0, 1.08 * points.min()), max(25.0, 1.08 * points.max()))
        axes.set_xlabel("scenes, sorted")
        axes.set_ylabel("gain, points")
        return render("Difference per scene, chosen minus reference, sorted")


def advantage_histogram(weights: Weights) -> str:
    """G as it was given to training."""
    with inline_figure(5.4, 3.1, "advantage") as (figure, render):
        axes = figure.add_subplot()
        reach = float(np.quantile(np.abs(weights.advantage), 0.999)) or 1.0
        _histogram(axes, np.clip(weights.advantage, -reach, reach), 41, (-reach, reach), GREY)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("advantage G (dimensionless)")
        axes.set_ylabel("candidates")
        title = f"std(G) = {weights.advantage.std():.2f}, mean {weights.advantage.mean():+z.2f}"
        axes.set_title(title.replace("-", "−"), fontsize=9.5, loc="left")
        return render("Histogram of advantages")


def weight_histogram(weights: Weights) -> str:
    """What a candidate weighs in the positive policy's loss, by the rule of the training."""
    with inline_figure(5.4, 3.1, "weight") as (figure, render):
        axes = figure.add_subplot()
        top = max(1.0, float(weights.positive.max()))
        _histogram(axes, weights.positive, 51, (0.0, top), BLUE)  # odd: one bar is centred on σ(0)
        near, far = (weights.neutral * (1 + side * INERT) for side in (-1, 1))
        axes.axvspan(near, far, color=ORANGE, alpha=0.3, linewidth=0)
        _note(axes, "G = 0", far, 1, (4, -3), "top")
        axes.set_xlim(0, max(top, far))
        how = "σ(βG)" if weights.is_sigmoid else f"({weights.rule})"
        axes.set_xlabel(f"weight {how} of the positive policy")
        axes.set_ylabel("candidates")
        shares = ", ".join(f"{role} {share:.0%}" for role, share in weights.effective_fraction.items())
        axes.set_title(f"effective sample: {shares}", fontsize=9.5, loc="left")
        return render("Histogram of weights")


def _histogram(axes: Any, values: np.ndarray, bins: int, reach: tuple[float, float], color: str) -> None:
    counts, edges = np.histogram(values, bins=bins, range=reach)
    axes.stairs(counts, edges, fill=True, color=color, linewidth=0)
    axes.set_ylim(0, 1.12 * max(1, counts.max()))


def _level(axes: Any, height: float, label: str, color: str, dash: Any) -> None:
    axes.axhline(height, color=color, linestyle=dash, linewidth=1.5, label=label)


@contextmanager
def inline_figure(width: float, height: float, name: str) -> Iterator[tuple[Any, Callable[[str], str]]]:
    """A figure under the report's settings, and the function that turns it into inline SVG."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    def render(description: str) -> str:
        stream = io.StringIO()
        nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
        return _inline(stream.getvalue(), description, name)

    settings: Any = {**RC, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, render


def _inline(svg: str, description: str, name: str) -> str:
    """The <svg> element alone: sized by the page, ids made unique, ink following the text colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}" class="chart"', 1)
