"""(d) States outside the data: a wedge of directions is left out of training and then asked for."""

from __future__ import annotations

import math
from typing import Any

import torch

from dipole_vla.report import charts
from dipole_vla.rl.experiments.bandit import BanditData, behaviour, draw, pairs, train
from dipole_vla.rl.experiments.page import Figure, Page, Table, percent, signed
from dipole_vla.rl.heads import Head
from dipole_vla.rl.learner import Policies

WEDGE, BETA, OMEGAS = math.pi / 3, 2.0, (0.0, 0.5, 1.0, 2.0, 4.0)  # directions within this angle of +x are unseen
KINDS = {
    "seen": (charts.BLUE, "o"),
    "unseen direction": (charts.ORANGE, "D"),
    "three times as far": (charts.GREEN, "^"),
}


def run(seed: int = 0, updates: int = 4000) -> Page:
    generator = torch.Generator().manual_seed(seed)
    data = draw(30_000, generator)
    kept = ~_is_in_wedge(data.state)
    data = BanditData(data.state[kept], data.action[kept], data.gain[kept])
    policies = train(data, [Head(), *pairs([BETA])], updates, seed).policies
    asked = _states(seed)
    rows: list[dict[str, Any]] = []
    for kind, state in asked.items():
        distance = _sign_distance(policies, state, seed)
        rows.append({"states": kind, "policy": "bc", "omega": 0.0, **vars(behaviour(policies, 0, state=state))})
        for omega in OMEGAS:
            found = behaviour(policies, 1, 2, omega, state=state)
            half = behaviour(policies, 1, 2, omega, state=state, interval=(0.5, 1.0))
            rows.append(
                {
                    "states": kind,
                    "policy": "dipole",
                    "omega": omega,
                    **vars(found),
                    "gain_half": half.gain,
                    "off_support_half": half.off_support,
                    "sign_distance": distance,
                }
            )
    at = {(row["states"], row["omega"]): row for row in rows if row["policy"] == "dipole"}
    base = {row["states"]: row for row in rows if row["policy"] == "bc"}
    answer = [
        f"{kind.capitalize()}: mean gain {signed(at[kind, 1.0]['gain'])} at ω = 1 (imitation "
        f"{signed(base[kind]['gain'])}), with {percent(at[kind, 1.0]['off_support'])} of the actions off the data; "
        f"{signed(at[kind, 4.0]['gain'])} at ω = 4, with {percent(at[kind, 4.0]['off_support'])}; guided in the "
        f"noisier half only, {signed(at[kind, 4.0]['gain_half'])} at ω = 4, with "
        f"{percent(at[kind, 4.0]['off_support_half'])}. The two policies' velocities lie "
        f"{at[kind, 1.0]['sign_distance']:.2f} apart (root mean square)."
        for kind in asked
    ]
    return Page(
        "States outside the data",
        "What do the guided policies do in states they were not trained on?",
        answer,
        f"contextual bandit with a third of the directions left out, β = {BETA:g}, {updates} updates",
        [
            Figure(
                "Gain and support",
                _plot(rows),
                "Mean gain (left) and share of actions off the data (right) against ω; dashed: imitation in the same "
                "states. Unseen direction: the third of all directions left out of training. Three times as far: seen "
                "directions at three times the distance from the origin.",
            )
        ],
        [
            Table(
                "All numbers",
                (
                    "states",
                    "policy",
                    "ω",
                    "mean gain",
                    "off the data",
                    "modes kept",
                    "gain, half guided",
                    "off the data, half guided",
                ),
                [
                    (
                        row["states"],
                        "DIPOLE" if row["policy"] == "dipole" else "imitation",
                        f"{row['omega']:g}" if row["policy"] == "dipole" else "–",
                        signed(row["gain"], 3),
                        percent(row["off_support"]),
                        f"{row['modes_kept']:.2f}",
                        signed(row["gain_half"], 3) if "gain_half" in row else "–",
                        percent(row["off_support_half"]) if "gain_half" in row else "–",
                    )
                    for row in rows
                ],
                "Half guided: guidance in the noisier half of the sampling only.",
            )
        ],
        {"updates": updates, "rows": rows},
    )


def _is_in_wedge(state: torch.Tensor) -> torch.Tensor:
    return torch.atan2(state[:, 1], state[:, 0]).abs() < WEDGE


def _states(seed: int) -> dict[str, torch.Tensor]:
    state = torch.randn(1200, 2, generator=torch.Generator().manual_seed(seed + 1))
    inside = _is_in_wedge(state)
    seen = state[~inside][:128]
    return dict(zip(KINDS, (seen, state[inside][:128], 3 * seen)))


@torch.no_grad()
def _sign_distance(policies: Policies, state: torch.Tensor, seed: int) -> float:
    """Root mean square difference of the two signs' velocities at half noise around nothing in particular."""
    noise = torch.randn(len(state), 2, generator=torch.Generator().manual_seed(seed + 2))
    inputs = torch.cat([state, 0.5 * noise, torch.full((len(state), 1), 0.5)], -1)[None]
    positive, negative = (policies.networks.select([head])(inputs) for head in (1, 2))
    return float((positive - negative).pow(2).mean().sqrt())


def _plot(rows: list[dict[str, Any]]) -> str:
    with charts.inline_figure(10.5, 3.8, "unseen") as (figure, svg):
        for place, (key, label) in enumerate(
            (("gain", "mean gain G"), ("off_support", "share of actions off the data"))
        ):
            axes = figure.add_subplot(1, 2, place + 1)
            for kind, (color, marker) in KINDS.items():
                mine = [row for row in rows if row["states"] == kind and row["policy"] == "dipole"]
                base = next(row for row in rows if row["states"] == kind and row["policy"] == "bc")
                axes.plot([r["omega"] for r in mine], [r[key] for r in mine], color=color, marker=marker, label=kind)
                axes.axhline(base[key], color=color, linestyle=(0, (3, 2)), linewidth=1)
            if key == "off_support":
                axes.set_ylim(0, 1)
            axes.set_xlabel("greed ω")
            axes.set_ylabel(label)
            axes.legend(frameon=False, fontsize=9)
        return svg("Gain and support in seen and unseen states against omega")
