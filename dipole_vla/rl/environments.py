"""Environments behind one small face: OGBench single tasks and dm_control tasks, seeded, stepped as a fleet.

`play` runs episodes side by side, so that a policy acts on all of them in one batch. Whole episodes only: an episode
is a function of its seed and of the actions, so a killed run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from navsim_adapter.foundation.errors import InputError


class Environment(Protocol):
    """One task. `reset` makes the episode a function of the seed."""

    horizon: int
    is_success_rate: bool  # returns are 100 for success and 0 else; or the sum of rewards

    def reset(self, seed: int) -> np.ndarray: ...

    def step(self, action: np.ndarray) -> Step: ...


@dataclass(frozen=True)
class Step:
    """What came of one action. mask: 0 where the value ends here, as offline data mark it."""

    observation: np.ndarray
    reward: float
    mask: float
    is_over: bool
    gain: float  # this step's part of the return that is reported


class OGBenchTask:
    """A single-task OGBench environment, such as cube-single-play-singletask-task2-v0."""

    is_success_rate = True

    def __init__(self, task: str):
        import gymnasium
        import ogbench  # noqa: F401  registers the environments

        words = task.split("-")
        if "singletask" not in words:
            raise InputError(f"task: {task!r} is not a single task; name one as cube-single-play-singletask-task2-v0")
        place = words.index("singletask")
        try:
            self._environment = gymnasium.make("-".join(words[: place - 1] + words[place:]), disable_env_checker=True)
        except gymnasium.error.Error as problem:
            raise InputError(f"task: OGBench has no {task!r} ({problem})") from problem
        assert self._environment.spec is not None
        self.horizon = int(self._environment.spec.max_episode_steps or 1000)

    def reset(self, seed: int) -> np.ndarray:
        seed_everything(self._environment, seed)
        return np.asarray(self._environment.reset(seed=seed)[0], np.float32)

    def step(self, action: np.ndarray) -> Step:
        observation, reward, is_terminal, is_cut, info = self._environment.step(np.clip(action, -1, 1))
        success = float(info["success"])
        over = bool(is_terminal or is_cut)
        return Step(np.asarray(observation, np.float32), float(reward), 1.0 - is_terminal, over, 100 * success * over)


class ControlTask:
    """A dm_control task, such as walker-walk; returns are sums of rewards over 1,000 steps."""

    is_success_rate = False
    horizon = 1000

    def __init__(self, task: str):
        from dm_control import suite

        domain, _, name = task.partition("-")
        if (domain, name) not in suite.ALL_TASKS:
            raise InputError(f"task: dm_control has no {task!r}; name one as walker-walk")
        self._environment = suite.load(domain, name, task_kwargs={"random": 0})
        self.action_dim = int(np.prod(self._environment.action_spec().shape))

    def physics_and_task(self) -> tuple[Any, Any]:
        """The simulation and the reward rule, for relabelling stored states."""
        return self._environment.physics, self._environment.task

    def reset(self, seed: int) -> np.ndarray:
        self._environment.task.random.seed(seed % 2**32)
        return flat_observation(self._environment.reset().observation)

    def step(self, action: np.ndarray) -> Step:
        result = self._environment.step(np.clip(action, -1, 1))
        reward = float(result.reward or 0.0)
        mask = 1.0 if result.discount is None else float(result.discount)
        return Step(flat_observation(result.observation), reward, mask, result.last(), reward)


def flat_observation(observation: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)


def seed_everything(environment, seed: int) -> None:
    """Also numpy's global generator and the action space: OGBench's resets draw from all three."""
    np.random.seed(seed % 2**32)
    environment.action_space.seed(seed)
    environment.unwrapped.action_space.seed(seed)


def make_environment(task: str) -> Environment:
    """By name: OGBench single tasks have `singletask` in theirs, all others are dm_control's."""
    return OGBenchTask(task) if task.endswith("-v0") else ControlTask(task)


@dataclass(frozen=True)
class Episode:
    """One played episode: arrays of its steps, and what it returned."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    mask: np.ndarray
    next_observation: np.ndarray
    gain: float


Act = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(observations (players, rows, d), episode seeds (players, rows), step) -> actions (players, rows, a)."""


def play(fleet: Sequence[Environment], act: Act, seeds: np.ndarray) -> list[list[Episode]]:
    """Every player's episodes, one per seed of seeds (players, episodes), all players side by side.

    fleet: at least one environment per player; each player has an equal share of them.
    """
    players, total = seeds.shape
    width = min(total, len(fleet) // players)
    episodes: list[list[Episode]] = [[] for _ in range(players)]
    for start in range(0, total, width):
        for player, played in enumerate(_play_together(fleet, act, seeds[:, start : start + width])):
            episodes[player] += played
    return episodes


def _play_together(fleet: Sequence[Environment], act: Act, seeds: np.ndarray) -> list[list[Episode]]:
    players, width = seeds.shape
    flat = seeds.reshape(-1).tolist()
    observations = np.stack([environment.reset(seed) for environment, seed in zip(fleet, flat)])
    steps: list[list[tuple[np.ndarray, np.ndarray, Step]]] = [[] for _ in flat]
    running = [list(range(player * width, (player + 1) * width)) for player in range(players)]
    for step in range(max(environment.horizon for environment in fleet)):
        rows = max(len(mine) for mine in running)
        # every player gets as many rows as the one with most episodes left; the filling is not used
        index = np.array([(mine + [player * width] * rows)[:rows] for player, mine in enumerate(running)])
        actions = act(observations[index], seeds.reshape(-1)[index], step)
        for mine, chosen in zip(running, actions):
            for row, action in zip(mine, chosen):
                result = fleet[row].step(action)
                steps[row].append((observations[row].copy(), action.copy(), result))
                observations[row] = result.observation
        running = [[row for row in mine if not steps[row][-1][2].is_over] for mine in running]
        if not any(running):
            break
    played = [_episode(taken) for taken in steps]
    return [played[player * width : (player + 1) * width] for player in range(players)]


def _episode(taken: list[tuple[np.ndarray, np.ndarray, Step]]) -> Episode:
    results = [result for _, _, result in taken]
    return Episode(
        np.stack([observation for observation, _, _ in taken]),
        np.stack([action for _, action, _ in taken]).astype(np.float32),
        np.array([result.reward for result in results], np.float32),
        np.array([result.mask for result in results], np.float32),
        np.stack([result.observation for result in results]),
        float(sum(result.gain for result in results)),
    )
