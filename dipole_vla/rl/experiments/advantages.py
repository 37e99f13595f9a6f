"""(c) Learnt against true advantages: a gridworld solved exactly, and a bandit whose gains are known.

Gridworld: the IQL critic of the benchmarks learns from behaviour transitions; its advantage is set beside the exact
fixed point of the same expectile backup and beside the behaviour's own advantage, and the exact return of the policy
mu sigma(beta G) exp(omega beta G) is solved for each. Bandit: a Q network's error against what DIPOLE then gains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dipole_vla.objective import RULES
from dipole_vla.report import charts
from dipole_vla.rl.experiments import gridworld
from dipole_vla.rl.experiments.bandit import BanditData, behaviour, draw, pairs, train, true_gain
from dipole_vla.rl.experiments.page import Figure, Page, Table, signed
from dipole_vla.rl.iql import IQLCritic
from dipole_vla.rl.stack import StackedMLP

EXPECTILES, BETA, OMEGAS, SAMPLES = (0.5, 0.7, 0.9), 2.0, (0.0, 1.0, 2.0, 4.0), (250, 1000, 20_000)


def run(seed: int = 0, updates: int = 4000) -> Page:
    world = gridworld.make()
    learnt = {expectile: _learn(world, expectile, updates, seed) for expectile in EXPECTILES}
    exact = {expectile: _advantage(world, world.expectile_value(expectile)) for expectile in EXPECTILES}
    rows = [_grid_row(world, expectile, learnt[expectile], exact[expectile]) for expectile in EXPECTILES]
    fits = max(1, updates // 3)
    bandit_rows = _bandit_rows(seed, fits)
    worst = min(rows, key=lambda row: row["correlation"])
    answer = [
        f"Gridworld: learnt and exact advantages correlate {worst['correlation']:.3f} or better at expectiles "
        f"{', '.join(f'{e:g}' for e in EXPECTILES)} (root mean square error at most "
        f"{max(row['error'] for row in rows):.3f} at a spread of the exact advantage of at least "
        f"{min(row['spread'] for row in rows):.3f}).",
        "Exact return from the start at ω = 2: "
        + "; ".join(
            f"expectile {row['expectile']:g}: {signed(row['return_learnt'][2], 3)} learnt, "
            f"{signed(row['return_exact'][2], 3)} exact"
            for row in rows
        )
        + f". The behaviour returns {signed(world.start_value(world.behaviour), 3)}.",
        "Bandit: "
        + "; ".join(
            f"{row['samples']:,} samples: correlation {row['correlation']:.2f}, mean gain {signed(row['learnt'])} "
            f"(with true advantages: {signed(row['true'])})"
            for row in bandit_rows
        )
        + ".",
    ]
    return Page(
        "Learnt against true advantages",
        "How far is a learnt advantage from the true one, and what does the difference cost?",
        answer,
        f"gridworld of {gridworld.SIZE} × {gridworld.SIZE} cells, {updates} critic updates; contextual bandit, {fits} "
        "updates",
        [
            Figure(
                "Advantages, state by state",
                _scatter(world, learnt, exact),
                "Each mark is a state and move that the behaviour takes. On the line they agree.",
            ),
            Figure(
                "Return against ω",
                _returns(world, rows),
                "Exact return of the policy that each advantage makes; solid: exact advantage, dashed: learnt.",
            ),
        ],
        [
            Table(
                "Bandit: advantages from a Q network",
                ("samples", "correlation with the truth", "gain, learnt G", "gain, observed G", "gain, true G"),
                [
                    (
                        f"{row['samples']:,}",
                        f"{row['correlation']:.3f}",
                        signed(row["learnt"], 3),
                        signed(row["observed"], 3),
                        signed(row["true"], 3),
                    )
                    for row in bandit_rows
                ],
                "DIPOLE at β = 2, ω = 1, one run each. Observed G is the truth with noise of standard deviation 0.3 on "
                "every sample.",
            )
        ],
        {"updates": updates, "gridworld": rows, "bandit": bandit_rows},
    )


def tilted(world: gridworld.Gridworld, advantage: np.ndarray, beta: float, omega: float) -> np.ndarray:
    """(states, moves) mu sigma(beta G) exp(omega beta G), normalised, in logs; the rule is the library's."""
    rule = RULES["dichotomous"]
    assert rule.negative is not None
    given = torch.from_numpy(advantage)
    positive, negative = rule.positive(given, beta).log(), rule.negative(given, beta).log()
    log = torch.from_numpy(np.log(world.behaviour)) + (1 + omega) * positive - omega * negative
    return torch.softmax(log, -1).numpy()


def _advantage(world: gridworld.Gridworld, value: np.ndarray) -> np.ndarray:
    return world.q_of(value) - value[:, None]


def _learn(world: gridworld.Gridworld, expectile: float, updates: int, seed: int) -> np.ndarray:
    """(states, moves) least Q - V of the library's critic, after training on behaviour transitions."""
    rng = np.random.default_rng(seed)
    rows = 20_000
    state = rng.choice(np.flatnonzero(~world.is_final), rows)
    move = _drawn(world.behaviour[state], rng)
    after = _drawn(world.transition[state, move], rng)
    reached = {gridworld.GOAL: 1.0, gridworld.PIT: -1.0}
    reward = np.array([reached.get((s // gridworld.SIZE, s % gridworld.SIZE), 0.0) for s in after])
    states, moves = torch.eye(world.states), torch.eye(4)
    critic = IQLCritic(world.states, 4, [seed], hidden=64, layers=2, expectile=expectile, polyak=0.02)
    trained = [p for p in critic.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3, fused=True)
    for update in range(updates):
        index = rng.integers(rows, size=256)
        batch = {
            "observation": states[state[index]][None],
            "action": moves[move[index]][None],
            "next_observation": states[after[index]][None],
            "reward": torch.tensor(reward[index], dtype=torch.float32)[None],
            "discount": torch.tensor(gridworld.GAMMA * ~world.is_final[after[index]], dtype=torch.float32)[None],
        }
        loss, _, _ = critic.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - update / updates)
        optimizer.step()
        critic.update_targets()
    with torch.no_grad():
        wide = states.repeat_interleave(4, 0)[None]
        q = critic.least_q(wide, moves.repeat(world.states, 1)[None]).reshape(world.states, 4)
        return (q - critic.value(states[None]).reshape(-1, 1)).double().numpy()


def _drawn(chance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random((len(chance), 1)) > chance.cumsum(1)).sum(1).clip(0, chance.shape[1] - 1)


def _grid_row(world: gridworld.Gridworld, expectile: float, learnt: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    inside = ~world.is_final
    one, other = learnt[inside].ravel(), exact[inside].ravel()
    spread = float(other.std())
    return {
        "expectile": expectile,
        "correlation": float(np.corrcoef(one, other)[0, 1]),
        "error": float(np.sqrt(((one - other) ** 2).mean())),
        "spread": spread,
        "return_learnt": [world.start_value(tilted(world, learnt / spread, BETA, omega)) for omega in OMEGAS],
        "return_exact": [world.start_value(tilted(world, exact / spread, BETA, omega)) for omega in OMEGAS],
    }


def _bandit_rows(seed: int, updates: int) -> list[dict[str, Any]]:
    rows = []
    for samples in SAMPLES:
        data = draw(samples, torch.Generator().manual_seed(seed))
        truth, learnt = true_gain(data.state, data.action), _regressed(data, updates, seed)
        row: dict[str, Any] = {
            "samples": samples,
            "correlation": float(torch.corrcoef(torch.stack([truth, learnt]))[0, 1]),
        }
        for name, gain in (("learnt", learnt), ("observed", data.gain), ("true", truth)):
            policies = train(BanditData(data.state, data.action, gain), pairs([BETA]), updates, seed).policies
            row[name] = behaviour(policies, 0, 1, 1.0).gain
        rows.append(row)
    return rows


def _regressed(data: BanditData, updates: int, seed: int) -> torch.Tensor:
    """(n,) gains as a Q network sees them, less their mean."""
    network = StackedMLP([4, 64, 64, 1], [seed], layer_norm=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    inputs, generator = torch.cat([data.state, data.action], -1), torch.Generator().manual_seed(seed)
    for _ in range(updates):
        index = torch.randint(len(inputs), (256,), generator=generator)
        loss = (network(inputs[index][None])[0, :, 0] - data.gain[index]).pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        q = network(inputs[None])[0, :, 0]
    return q - q.mean()


def _scatter(world: gridworld.Gridworld, learnt: dict[float, np.ndarray], exact: dict[float, np.ndarray]) -> str:
    with charts.inline_figure(11, 3.8, "scatter") as (figure, svg):
        for place, expectile in enumerate(EXPECTILES):
            axes = figure.add_subplot(1, len(EXPECTILES), place + 1)
            inside = ~world.is_final
            x, y = exact[expectile][inside].ravel(), learnt[expectile][inside].ravel()
            low, high = min(x.min(), y.min()), max(x.max(), y.max())
            axes.plot([low, high], [low, high], color=charts.GREY, linewidth=1)
            axes.plot(x, y, "o", color=charts.BLUE, markersize=3.5, alpha=0.6)
            axes.set_title(f"expectile {expectile:g}", fontsize=10)
            axes.set_xlabel("exact advantage")
            axes.set_ylabel("learnt advantage" if place == 0 else "")
        return svg("Learnt against exact advantages of the gridworld")


def _returns(world: gridworld.Gridworld, rows: list[dict[str, Any]]) -> str:
    with charts.inline_figure(9, 4.0, "returns") as (figure, svg):
        axes = figure.add_subplot()
        styles = zip(rows, (charts.GREY, charts.BLUE, charts.ORANGE), ("s", "o", "D"))
        for row, color, marker in styles:
            label = f"expectile {row['expectile']:g}"
            axes.plot(OMEGAS, row["return_exact"], color=color, marker=marker, label=f"{label}, exact")
            axes.plot(
                OMEGAS,
                row["return_learnt"],
                color=color,
                marker=marker,
                linestyle=(0, (3, 2)),
                label=f"{label}, learnt",
            )
        axes.axhline(world.start_value(world.behaviour), color=charts.INK, linewidth=0.8)
        axes.annotate(
            "behaviour",
            (OMEGAS[-1], world.start_value(world.behaviour)),
            (0, 4),
            textcoords="offset points",
            ha="right",
        )
        axes.set_xlabel("greed ω")
        axes.set_ylabel("exact return from the start")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        return svg("Exact return against omega")
