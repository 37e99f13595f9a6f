"""(b) The dial: mean gain against what is lost in diversity and in staying on the data."""

from __future__ import annotations

from typing import Any

import torch

from dipole_vla.report import charts
from dipole_vla.rl.experiments.bandit import MODES, behaviour, draw, pairs, train
from dipole_vla.rl.experiments.page import Figure, Page, Table, percent, signed
from dipole_vla.rl.heads import Head

BETAS = (1.0, 2.0)
LEAVES = 0.1  # share of actions off the data, beyond that of imitation, that counts as leaving it
OMEGAS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0)
STYLES = ((charts.BLUE, "o", "solid"), (charts.ORANGE, "D", (0, (4, 2))))


def run(seed: int = 0, updates: int = 4000) -> Page:
    data = draw(20_000, torch.Generator().manual_seed(seed))
    policies = train(data, [Head(), *pairs(BETAS)], updates, seed).policies
    rows: list[dict[str, Any]] = []
    for number, beta in enumerate(BETAS):
        for omega in OMEGAS:
            found = behaviour(policies, 1 + 2 * number, 2 + 2 * number, omega)
            among = behaviour(policies, 1 + 2 * number, 2 + 2 * number, omega, choose_among=8)
            rows.append({"beta": beta, "omega": omega, **vars(found), "gain_best_of_8": among.gain})
    base, base_best = behaviour(policies, 0), behaviour(policies, 0, choose_among=8)
    best = max(rows, key=lambda row: row["gain"])
    answer = [
        f"Highest mean gain {signed(best['gain'])} at β = {best['beta']:g}, ω = {best['omega']:g} (imitation: "
        f"{signed(base.gain)}); there a state keeps {best['modes_kept']:.1f} of {MODES} modes (imitation: "
        f"{base.modes_kept:.1f}) and {percent(best['off_support'])} of the actions are off the data (imitation: "
        f"{percent(base.off_support)}).",
        f"Choosing the best of 8 by a noisy gain: imitation {signed(base_best.gain)}, best setting "
        f"{signed(max(row['gain_best_of_8'] for row in rows))}.",
        *[_monotone(beta, [row for row in rows if row["beta"] == beta]) for beta in BETAS],
    ]
    return Page(
        "Performance against diversity",
        "What does the dial ω buy, and what does it cost?",
        answer,
        f"contextual bandit, {updates} updates",
        [
            Figure(
                "Gain against the modes kept",
                _front(rows, base),
                "One mark per ω (the numbers), joined in order. To the left is narrower, upwards is better; hollow "
                "marks have 10 points more of their actions off the data than imitation has.",
            ),
            Figure(
                "Against ω",
                _against(rows, base),
                "Mean gain (left) and share of actions off the data (right); dashed thin lines: imitation.",
            ),
        ],
        [
            Table(
                "All numbers",
                ("β", "ω", "mean gain", "gain, best of 8", "modes kept", "off the data"),
                [
                    (
                        f"{row['beta']:g}",
                        f"{row['omega']:g}".replace("-", "−"),
                        signed(row["gain"], 3),
                        signed(row["gain_best_of_8"], 3),
                        f"{row['modes_kept']:.2f}",
                        percent(row["off_support"]),
                    )
                    for row in rows
                ],
            )
        ],
        {"updates": updates, "behaviour": vars(base), "rows": rows},
    )


def _monotone(beta: float, rows: list[dict[str, Any]]) -> str:
    gains = [row["gain"] for row in rows]
    turn = next((i for i in range(1, len(gains)) if gains[i] <= gains[i - 1]), None)
    if turn is None:
        return f"At β = {beta:g} the gain rises over the whole range of ω."
    return (
        f"At β = {beta:g} the gain rises up to ω = {rows[turn - 1]['omega']:g} and falls at "
        f"ω = {rows[turn]['omega']:g}, where {percent(rows[turn]['off_support'])} of the actions are off the data."
    )


def _front(rows: list[dict[str, Any]], base: Any) -> str:
    with charts.inline_figure(8, 4.2, "front") as (figure, svg):
        axes = figure.add_subplot()
        for beta, (color, marker, dash), corner in zip(BETAS, STYLES, ((4, 5), (-4, -12))):
            mine = [row for row in rows if row["beta"] == beta]
            axes.plot([r["modes_kept"] for r in mine], [r["gain"] for r in mine], color=color, linestyle=dash, zorder=1)
            for row in mine:
                fill = "white" if row["off_support"] > base.off_support + LEAVES else color
                axes.plot(
                    row["modes_kept"], row["gain"], marker=marker, markerfacecolor=fill, markeredgecolor=color, zorder=2
                )
                axes.annotate(
                    f"{row['omega']:g}".replace("-", "−"),
                    (row["modes_kept"], row["gain"]),
                    corner,
                    textcoords="offset points",
                    fontsize=8,
                    color=color,
                    ha="left" if corner[0] > 0 else "right",
                )
            axes.plot([], [], color=color, marker=marker, linestyle=dash, label=f"β = {beta:g}")
        axes.plot(base.modes_kept, base.gain, "k*", markersize=11, label="imitation")
        axes.margins(0.08)
        axes.set_xlabel(f"modes kept per state (of {MODES})")
        axes.set_ylabel("mean gain G")
        axes.legend(frameon=False)
        return svg("Mean gain against number of modes kept, one mark per omega")


def _against(rows: list[dict[str, Any]], base: Any) -> str:
    with charts.inline_figure(10, 3.6, "against") as (figure, svg):
        for place, (key, label) in enumerate(
            (("gain", "mean gain G"), ("off_support", "share of actions off the data"))
        ):
            axes = figure.add_subplot(1, 2, place + 1)
            for beta, (color, marker, dash) in zip(BETAS, STYLES):
                mine = [row for row in rows if row["beta"] == beta]
                axes.plot(
                    [row["omega"] for row in mine],
                    [row[key] for row in mine],
                    color=color,
                    marker=marker,
                    linestyle=dash,
                    label=f"β = {beta:g}",
                )
            axes.axhline(getattr(base, key), color=charts.INK, linestyle=(0, (3, 2)), linewidth=0.8)
            if key == "off_support":
                axes.set_ylim(0, 1)
            axes.set_xlabel("greed ω")
            axes.set_ylabel(label)
            axes.grid(axis="y", linewidth=0.4, alpha=0.35)
            axes.legend(frameon=False)
        return svg("Mean gain and share of actions off the data against omega")
