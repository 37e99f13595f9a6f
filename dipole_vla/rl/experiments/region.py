"""(e) The map of beta and omega: where DIPOLE works, and which failure waits on which side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dipole_vla.objective import positive_weight
from dipole_vla.report import charts
from dipole_vla.rl.experiments.bandit import behaviour, draw, pairs, train
from dipole_vla.rl.experiments.page import Figure, Page, Table, percent, signed
from dipole_vla.rl.heads import Head

BETAS, OMEGAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LEAVES = 0.1  # share of actions off the data, beyond that of imitation, that counts as leaving it


def run(seed: int = 0, updates: int = 4000) -> Page:
    data = draw(20_000, torch.Generator().manual_seed(seed))
    spread = float(data.gain.std())
    policies = train(data, [Head(), *pairs(BETAS)], updates, seed).policies
    base = behaviour(policies, 0)
    rows: list[dict[str, Any]] = []
    for number, beta in enumerate(BETAS):
        weight = positive_weight(data.gain, beta)
        for omega in OMEGAS:
            found = behaviour(policies, 1 + 2 * number, 2 + 2 * number, omega, draws=8)
            tilt = beta * (1 + omega) * spread
            rows.append({"beta": beta, "omega": omega, "tilt": tilt, "weight_std": float(weight.std()), **vars(found)})
    limit = base.off_support + LEAVES
    best = max((row for row in rows if row["off_support"] <= limit), key=lambda row: row["gain"], default=rows[0])
    for row in rows:
        row["sign"] = signature(row, base.gain, best["gain"], limit)
    good = [row["tilt"] for row in rows if row["sign"] == "works"]
    answer = [
        f"Best among the settings that stay on the data: {signed(best['gain'])} at β = {best['beta']:g}, "
        f"ω = {best['omega']:g}, where β(1+ω)·std(G) = {best['tilt']:.1f}; imitation has {signed(base.gain)}.",
        f"{len(good)} of {len(rows)} settings work (within 25 % of the best gain, at most {percent(limit)} of the "
        f"actions off the data); "
        + (
            f"their β(1+ω)·std(G) runs from {min(good):.1f} to {max(good):.1f}, with median {np.median(good):.1f}."
            if good
            else "none."
        ),
    ]
    return Page(
        "The operating region",
        "For which inverse temperature β and greed ω does it work, and how does it fail elsewhere?",
        answer,
        f"contextual bandit, std(G) = {spread:.2f} as observed, {updates} updates",
        [
            Figure(
                "Mean gain",
                _map(rows, "gain", spread, "mean gain G", 0.0),
                "Colours start at 0: everything below is one colour. Above and to the right of the lines samples leave "
                "the data.",
            ),
            Figure(
                "Share of actions off the data",
                _map(rows, "off_support", spread, "share of actions off the data", 0.0, 1.0),
                f"The failure of large β(1+ω): extrapolation. Imitation itself: {percent(base.off_support)}.",
            ),
        ],
        [
            Table(
                "Signatures",
                ("β \\ ω", *[f"{omega:g}" for omega in OMEGAS]),
                [(f"{beta:g}", *[row["sign"] for row in rows if row["beta"] == beta]) for beta in BETAS],
                "works: within 25 % of the best gain and on the data. idle: gains less than a quarter of that, "
                "on the data (β too small). mild: in between. leaves: 10 points more off the data than imitation. "
                "worse: gains less than imitation.",
            )
        ],
        {"updates": updates, "std": spread, "behaviour_gain": base.gain, "rows": rows},
    )


def signature(row: dict[str, Any], base: float, best: float, limit: float) -> str:
    """The name of what a setting does; base, best: gain of imitation and the best one within `limit` off the data."""
    if row["gain"] < base:
        return "worse"
    if row["off_support"] > limit:
        return "leaves"
    if row["gain"] - base < 0.25 * (best - base):
        return "idle, flat weights" if row["weight_std"] < 0.1 else "idle"
    return "works" if row["gain"] - base >= 0.75 * (best - base) else "mild"


def _map(
    rows: list[dict[str, Any]], key: str, spread: float, label: str, low: float | None = None, high: float | None = None
) -> str:
    table = np.array([[row[key] for row in rows if row["beta"] == beta] for beta in BETAS])
    with charts.inline_figure(9, 4.2, key) as (figure, svg):
        axes = figure.add_subplot()
        x, y = np.arange(len(OMEGAS) + 1) - 0.5, np.arange(len(BETAS) + 1) - 0.5
        mesh = axes.pcolormesh(x, y, table, cmap="cividis", vmin=low, vmax=high)
        for i in range(len(BETAS)):
            for j in range(len(OMEGAS)):
                middle = ((low or 0.0) + (high if high is not None else float(table.max()))) / 2
                ink = "white" if table[i, j] < middle else "black"
                axes.text(
                    j, i, f"{table[i, j]:.2f}".replace("-", "−"), ha="center", va="center", fontsize=8.5, color=ink
                )
        for level, dash in ((3.0, "solid"), (5.0, (0, (4, 2)))):
            place = [
                np.interp(np.log(level / ((1 + omega) * spread)), np.log(BETAS), np.arange(len(BETAS)))
                for omega in OMEGAS
            ]
            axes.plot(
                range(len(OMEGAS)), place, color=charts.ORANGE, linestyle=dash, label=f"β(1+ω)·std(G) = {level:g}"
            )
        axes.set_xticks(range(len(OMEGAS)), [f"{omega:g}" for omega in OMEGAS])
        axes.set_yticks(range(len(BETAS)), [f"{beta:g}" for beta in BETAS])
        axes.set_xlabel("greed ω")
        axes.set_ylabel("inverse temperature β")
        figure.colorbar(mesh, ax=axes, label=label, extend="min" if table.min() < (low or 0.0) else "neither")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False, fontsize=9)
        return svg(f"{label} over beta and omega")
