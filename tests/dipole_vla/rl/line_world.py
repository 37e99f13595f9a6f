"""A world of milliseconds for the command's tests: a point on a line, pushed towards 1, over after eight steps."""

from __future__ import annotations

import numpy as np

from dipole_vla.rl.environments import Step
from dipole_vla.rl.transitions import n_step_transitions


class Line:
    horizon = 8
    is_success_rate = True

    def reset(self, seed):
        self.place, self.time = float(np.random.default_rng(seed).uniform(-1, 0)), 0
        return self._observed()

    def step(self, action):
        self.place += 0.4 * float(np.clip(action[0], -1, 1))
        self.time += 1
        success = self.place >= 0.8
        over = success or self.time == self.horizon
        return Step(self._observed(), float(success) - 1, 1.0 - success, over, 100.0 * success * over)

    def _observed(self):
        return np.array([self.place, self.time / self.horizon], np.float32)


def line_data(episodes=60, n_step=1, weigh_n_step=None):
    """Behaviour: pushes at random, more often forward."""
    world, columns = Line(), {name: [] for name in ("o", "a", "r", "m", "n", "last")}
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        observation, over = world.reset(episode), False
        while not over:
            action = np.clip(rng.normal(0.3, 0.6, 2), -1, 1).astype(np.float32)
            step = world.step(action)
            for name, value in zip(
                columns, (observation, action, step.reward, step.mask, step.observation, step.is_over)
            ):
                columns[name].append(value)
            observation, over = step.observation, step.is_over
    o, a, r, m, n, last = (np.array(values) for values in columns.values())
    return n_step_transitions(o, a, r, m, n, last, 0.95, n_step, weigh_n_step)
