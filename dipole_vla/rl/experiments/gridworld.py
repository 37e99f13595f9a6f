"""A small gridworld whose values are solved exactly: what a learnt critic's advantage should have been.

Five by five cells, four moves that slip with probability 0.1, a goal worth 1 that ends the episode, a pit worth -1 that
ends it too. The behaviour walks towards the goal half of the time. All is a table, so the value of any policy, and
the fixed point that expectile regression aims at, are a linear system or an iteration to machine precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE, SLIP, GAMMA = 5, 0.1, 0.95
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
GOAL, PIT, START = (0, 4), (2, 2), (4, 0)


@dataclass(frozen=True)
class Gridworld:
    """transition (states, moves, states), reward (states, moves), is_final (states,), behaviour (states, moves)."""

    transition: np.ndarray
    reward: np.ndarray
    is_final: np.ndarray
    behaviour: np.ndarray

    @property
    def states(self) -> int:
        return len(self.is_final)

    def q_of(self, value: np.ndarray) -> np.ndarray:
        """(states, moves) one backup."""
        return self.reward + GAMMA * self.transition @ (value * ~self.is_final)

    def value_of(self, policy: np.ndarray) -> np.ndarray:
        """(states,) exact value of a policy (states, moves): a linear system."""
        step = np.einsum("sm,smt->st", policy, self.transition) * ~self.is_final
        return np.linalg.solve(np.eye(self.states) - GAMMA * step, (policy * self.reward).sum(1))

    def expectile_value(self, expectile: float, sweeps: int = 2000) -> np.ndarray:
        """(states,) fixed point of V = the expectile of Q(s, .) under the behaviour, Q = r + gamma P V."""
        value = np.zeros(self.states)
        for _ in range(sweeps):
            updated = expectile_of(self.q_of(value), self.behaviour, expectile)
            if np.abs(updated - value).max() < 1e-12:
                break
            value = updated
        return value

    def start_value(self, policy: np.ndarray) -> float:
        return float(self.value_of(policy)[START[0] * SIZE + START[1]])


def make() -> Gridworld:
    states = SIZE * SIZE
    transition, reward = np.zeros((states, 4, states)), np.zeros((states, 4))
    behaviour = np.zeros((states, 4))
    final = np.array([(s // SIZE, s % SIZE) in (GOAL, PIT) for s in range(states)])
    for state in range(states):
        for move in range(4):
            for actual in range(4):
                chance = 1 - SLIP if actual == move else SLIP / 3
                after = _after(state, actual)
                transition[state, move, after] += chance
                reward[state, move] += chance * {GOAL: 1.0, PIT: -1.0}.get((after // SIZE, after % SIZE), 0.0)
        towards = [_steps_to_goal(_after(state, move)) < _steps_to_goal(state) for move in range(4)]
        helpful = np.array(towards, float)
        behaviour[state] = 0.5 / 4 + 0.5 * (helpful / helpful.sum() if helpful.any() else np.full(4, 0.25))
    return Gridworld(transition, reward, final, behaviour)


def expectile_of(values: np.ndarray, chance: np.ndarray, expectile: float) -> np.ndarray:
    """(rows,) e with expectile * E(x - e)+ = (1 - expectile) * E(e - x)+, by bisection."""
    low, high = values.min(1), values.max(1)
    for _ in range(80):
        middle = (low + high) / 2
        over = values - middle[:, None]
        pull = (chance * np.where(over > 0, expectile, 1 - expectile) * over).sum(1)
        low, high = np.where(pull > 0, middle, low), np.where(pull > 0, high, middle)
    return (low + high) / 2


def _after(state: int, move: int) -> int:
    row, column = state // SIZE + MOVES[move][0], state % SIZE + MOVES[move][1]
    return min(max(row, 0), SIZE - 1) * SIZE + min(max(column, 0), SIZE - 1)


def _steps_to_goal(state: int) -> int:
    return abs(state // SIZE - GOAL[0]) + abs(state % SIZE - GOAL[1])
