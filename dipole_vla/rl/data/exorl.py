"""ExORL's published format (one npz per episode) as transitions of one task, rewards relabelled from `physics`.

The published sets (agent RND, 10 M steps per domain) are downloads only. `substitute` writes episodes of uniformly
random actions in the same format, to try the readers; they are not ExORL and their cards say so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dipole_vla.progress import bar, wrote
from dipole_vla.rl.arrays import read_arrays, write_arrays
from dipole_vla.rl.environments import ControlTask
from dipole_vla.rl.transitions import Transitions, n_step_transitions
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, making

FIELDS = ("observation", "action", "discount", "physics")


def load(
    task: str,
    folder: Path,
    gamma: float,
    n_step: int = 1,
    weigh_n_step: int | None = None,
    steps: int = 10_000_000,
) -> Transitions:
    """The first `steps` steps of the episodes in `folder` (episode_<number>_<length>.npz), relabelled for `task`.

    Row 0 of an episode is its first observation; row i has the action that led to it, and its discount.
    """
    files = sorted(folder.glob("episode_*.npz"))
    if not files:
        raise InputError(
            f"{folder}: no episode_*.npz; copy an ExORL buffer there, or run `dipole-vla data exorl-substitute "
            f"{task} --out {folder}` to try the readers (random actions, not ExORL)"
        )
    environment = ControlTask(task).physics_and_task()
    parts, seen = [], 0
    with bar(f"rewards of {task}", len(files)) as progress:
        for file in files:
            if seen >= steps:
                break
            parts.append(_read(file, environment, gamma, n_step, weigh_n_step))
            seen += len(parts[-1])
            progress.advance()
    return Transitions.concatenate(parts)


def _read(file: Path, environment: tuple, gamma: float, n_step: int, weigh_n_step: int | None) -> Transitions:
    episode = read_arrays(file, "copy it again or remove it")
    missing = [key for key in FIELDS if key not in episode]
    if missing:
        raise InputError(f"{file}: not an ExORL episode, {missing[0]!r} is missing; copy it again or remove it")
    observation, physics, reward = episode["observation"], episode["physics"], []
    simulation, rule = environment
    for state in physics[1:]:
        with simulation.reset_context():
            simulation.set_state(state)
        reward.append(rule.get_reward(simulation))
    last = np.zeros(len(reward), bool)
    last[-1] = True
    mask = episode["discount"].reshape(-1)[1:]
    return n_step_transitions(
        observation[:-1],
        episode["action"][1:],
        np.array(reward),
        mask,
        observation[1:],
        last,
        gamma,
        n_step,
        weigh_n_step,
    )


def substitute(task: str, folder: Path, episodes: int, seed: int = 0) -> None:
    """Write episodes of uniformly random actions in ExORL's format: a substitute to try the readers with."""
    made_by = {"data": task, "episodes": episodes, "seed": seed, "made": "uniformly random actions; not ExORL"}
    environment = ControlTask(task)
    with making(folder, made_by) as is_open:
        if not is_open:
            return
        with bar(f"random episodes of {task} (not ExORL)", episodes) as progress:
            for number in range(episodes):
                path = folder / f"episode_{number:06d}_{environment.horizon}.npz"
                if not path.is_file():
                    write_arrays(path, _random_episode(environment, seed * 1_000_003 + number))
                progress.advance()
        finish(folder, made_by)
    wrote(f"substitute for ExORL {task} (random actions)", folder)


def _random_episode(environment: ControlTask, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    observation = environment.reset(seed)
    simulation = environment.physics_and_task()[0]
    rows = [(observation, np.zeros(environment.action_dim), 0.0, 1.0, simulation.get_state())]
    is_over = False
    while not is_over:
        action = rng.uniform(-1, 1, environment.action_dim)
        step = environment.step(action)
        rows.append((step.observation, action, step.reward, step.mask, simulation.get_state()))
        is_over = step.is_over
    names = ("observation", "action", "reward", "discount", "physics")
    types = (np.float32, np.float32, np.float32, np.float32, np.float64)
    return {name: np.array([row[i] for row in rows], types[i]) for i, name in enumerate(names)}
