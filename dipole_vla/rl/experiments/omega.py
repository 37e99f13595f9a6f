"""(b) The dial: mean gain against what is lost in diversity and in staying on the data."""

from __future__ import annotations

from typing import Any

import torch

from dipole_vla.evaluation.report import charts
from dipole_vla.rl.experiments.bandit import MODES, behaviour, draw, pairs, train
from dipole_vla.rl.experiments.page import Figure, Page, Table
from dipole_vla.rl.heads import Head

BETAS = (1.0, 2.0)
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
        f"Highest mean gain {best['gain']:+.2f} at β = {best['beta']:g}, ω = {best['omega']:g} (the behaviour: "
        f"{base.gain:+.2f}); there a state keeps {best['modes_kept']:.1f} of {MODES} modes and "
        f"{best['off_support']:.1%} of the actions leave the data.",
        f"Choosing the best of 8 by a noisy gain: behaviour {base_best.gain:+.2f}, best setting "
        f"{max(row['gain_best_of_8'] for row in rows):+.2f}.",
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
                "One mark per ω, joined in order. To the left is narrower, upwards is better; hollow marks leave "
                "the data with more than 10 % of their actions.",
            ),
            Figure("Against ω", _against(rows), "Mean gain (left) and share of actions off the data (right)."),
        ],
        [
            Table(
                "All numbers",
                ("β", "ω", "mean gain", "best of 8", "modes kept", "off support"),
                [
                    (
                        f"{row['beta']:g}",
                        f"{row['omega']:g}",
                        f"{row['gain']:+.3f}",
                        f"{row['gain_best_of_8']:+.3f}",
                        f"{row['modes_kept']:.2f}",
                        f"{row['off_support']:.1%}",
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
        f"ω = {rows[turn]['omega']:g}, where {rows[turn]['off_support']:.1%} of the actions are off the data."
    )


def _front(rows: list[dict[str, Any]], base: Any) -> str:
    with charts.inline_figure(8, 4.2, "front") as (figure, svg):
        axes = figure.add_subplot()
        for beta, (color, marker, dash) in zip(BETAS, STYLES):
            mine = [row for row in rows if row["beta"] == beta]
            axes.plot([r["modes_kept"] for r in mine], [r["gain"] for r in mine], color=color, linestyle=dash, zorder=1)
            for row in mine:
                fill = "white" if row["off_support"] > 0.1 else color
                axes.plot(
                    row["modes_kept"], row["gain"], marker=marker, markerfacecolor=fill, markeredgecolor=color, zorder=2
                )
                axes.annotate(
                    f"{row['omega']:g}",
                    (row["modes_kept"], row["gain"]),
                    (4, 4),
                    textcoords="offset points",
                    fontsize=8,
                )
            axes.plot([], [], color=color, marker=marker, linestyle=dash, label=f"β = {beta:g}")
        axes.plot(base.modes_kept, base.gain, "k*", markersize=11, label="behaviour")
        axes.set_xlabel(f"modes kept per state (of {MODES})")
        axes.set_ylabel("mean gain G")
        axes.legend(frameon=False)
        return svg("Mean gain against number of modes kept, one mark per omega")


def _against(rows: list[dict[str, Any]]) -> str:
    with charts.inline_figure(10, 3.6, "against") as (figure, svg):
        for place, (key, label) in enumerate((("gain", "mean gain G"), ("off_support", "share off support"))):
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
            axes.set_xlabel("greed ω")
            axes.set_ylabel(label)
            axes.grid(axis="y", linewidth=0.4, alpha=0.35)
            axes.legend(frameon=False)
        return svg("Mean gain and share off support against omega")
